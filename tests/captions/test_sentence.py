import pytest

from zimage.captions.sentence import LEAST_WORDS, MOST_WORDS, begun_with_subject, count_words, fitted
from zimage.captions.subject import Subject


@pytest.mark.parametrize(
    ("said", "caption"),
    [
        ("A smiling woman wearing a red coat, standing in a park.",
         "a photo of ohzw woman, smiling, wearing a red coat, standing in a park."),
        ("The image shows a young lady, seated at a desk.", "a photo of ohzw woman, young, seated at a desk."),
        ('"A portrait of a person in uniform"', "a photo of ohzw woman, in uniform"),
        ("A man orders noodles at a stall.", "a photo of ohzw woman, ordering noodles at a stall."),
        ("She has her arms crossed and is smiling.", "a photo of ohzw woman, with her arms crossed and smiling."),
        ("In a red coat, she watches the sea.", "a photo of ohzw woman, in a red coat, watching the sea."),
        ("Her eyes are closed, and she holds a cup.",
         "a photo of ohzw woman. Her eyes are closed, and she holds a cup."),
        ("a photo of ohzw woman, smiling", "a photo of ohzw woman, smiling"),
        ("Seated at a desk, warm light", "a photo of ohzw woman, seated at a desk, warm light"),
    ],
)  # fmt: skip
def test_a_description_begins_with_the_subject_in_the_place_of_its_own_beginning(
    said: str, caption: str, subject: Subject
) -> None:
    assert begun_with_subject(said, subject, "en") == caption


def test_a_chinese_description_begins_with_the_subject(subject: Subject) -> None:
    said = "这张照片展示了一位微笑的女子，穿着红色外套，站在公园里。"
    assert begun_with_subject(said, subject, "zh") == "一张 ohzw 女人的照片，微笑，穿着红色外套，站在公园里。"


def test_a_short_caption_is_filled_up_with_what_was_measured() -> None:
    template = "a photo of ohzw woman, head and shoulders, seen from the front, head upright, the face in medium light"
    caption = fitted("a photo of ohzw woman, smiling in a red coat.", template, "en")
    assert caption.startswith("a photo of ohzw woman, smiling in a red coat, head and shoulders, seen")
    assert count_words(caption, "en") >= LEAST_WORDS


@pytest.mark.parametrize(("language", "comma"), [("en", ", "), ("zh", "，")])
def test_a_long_caption_ends_at_the_last_pause_within_60_words(language: str, comma: str) -> None:
    clause = "wearing a long red coat" if language == "en" else "穿着红色长外套"
    caption = fitted(comma.join(["a photo of ohzw woman", *[clause] * 20]), "", language)  # type: ignore[arg-type]
    assert LEAST_WORDS <= count_words(caption, language) <= MOST_WORDS  # type: ignore[arg-type]
    assert caption.endswith(clause)
