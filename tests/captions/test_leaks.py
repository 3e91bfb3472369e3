import pytest

from zimage.captions.leaks import Leaks, without_leaks


def clean(caption: str, leaks: Leaks) -> str:
    language = "zh" if any("\u4e00" <= letter <= "\u9fff" for letter in caption) else "en"
    return without_leaks(caption, leaks, class_noun="woman", language=language).caption  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("a photo of ohzw woman, with long brown hair and blue eyes, wearing a red coat in a park",
         "a photo of ohzw woman, wearing a red coat in a park"),
        ("a photo of ohzw woman, with curly hair and a green scarf, near a window",
         "a photo of ohzw woman, with a green scarf, near a window"),
        ("a photo of ohzw woman, smiling, an elderly Asian woman in a blue dress",
         "a photo of ohzw woman, smiling, a woman in a blue dress"),
        ("a photo of ohzw woman, a young girl laughing with closed eyes",
         "a photo of ohzw woman, a woman laughing with closed eyes"),
        ("a photo of ohzw woman, in her thirties, holding an umbrella",
         "a photo of ohzw woman, holding an umbrella"),
        ("a photo of ohzw woman, a 25-year-old blue-eyed tourist. Her pale skin glows.",
         "a photo of ohzw woman"),
        ("a photo of ohzw woman, an old camera on the table", "a photo of ohzw woman, a camera on the table"),
        ("一张 ohzw 女人的照片，年轻的女孩，长发，穿着红色外套，站在公园里",
         "一张 ohzw 女人的照片，女人，穿着红色外套，站在公园里"),
    ],
)  # fmt: skip
def test_permanent_traits_go_and_everything_else_stays(caption: str, cleaned: str, leaks: Leaks) -> None:
    assert clean(caption, leaks) == cleaned


@pytest.mark.parametrize(
    "caption",
    [
        "a photo of ohzw woman, wearing a striped shirt and a straw hat, smiling broadly, soft light, in a garden",
        "a photo of ohzw woman, holding an umbrella for an hour, chair behind her",
        "一张 ohzw 女人的照片，戴着眼镜，微笑，穿着白色衬衫，柔和的光线，书架背景",
    ],
)
def test_clothes_expression_light_and_background_are_left_alone(caption: str, leaks: Leaks) -> None:
    assert clean(caption, leaks) == caption


def test_every_rewrite_is_recorded(leaks: Leaks) -> None:
    cleaned = without_leaks(
        "a photo of ohzw woman, a young lady with freckles", leaks, class_noun="woman", language="en"
    )
    assert [(rewrite.word, rewrite.removed) for rewrite in cleaned.rewrites] == [
        ("lady", "lady → woman"),
        ("freckles", "with freckles"),
        ("young", "young"),
    ]


def test_an_empty_list_changes_nothing() -> None:
    nothing = {"segment": [], "word": [], "class_noun": []}
    caption = "a photo of ohzw woman, with blue eyes, a young lady"
    none = Leaks.model_validate({"en": nothing, "zh": nothing})
    assert without_leaks(caption, none, class_noun="woman", language="en").caption == caption
