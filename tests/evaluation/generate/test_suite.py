from pathlib import Path

import pytest

from zimage.captions.sentence import LEAST_WORDS, MOST_WORDS, count_words
from zimage.captions.subject import Subject
from zimage.captions.template import vocabulary
from zimage.core.errors import InputError
from zimage.evaluation.generate.suite import halves, read_suite, with_subject, without_trigger

ADA = Subject(trigger="ohzw", class_noun="woman")


@pytest.mark.parametrize("name", ["demo", "full"])
def test_a_packaged_suite_asks_in_both_languages_and_for_every_kind_of_leak(name: str) -> None:
    prompts = read_suite(name)
    assert {prompt.language for prompt in prompts} == {"en", "zh"}
    assert {prompt.kind for prompt in prompts} == {"likeness", "leak_class", "leak_other", "leak_two"}
    assert sum(prompt.kind == "likeness" for prompt in prompts) >= 24


def test_the_full_suite_asks_for_every_aspect_of_the_protocol() -> None:
    aspects = {prompt.aspect for prompt in read_suite("full")}
    assert aspects >= {
        "frontal", "three-quarter", "profile", "half body", "full body", "expression", "glasses", "low light",
        "outdoors", "style", "costume",
    }  # fmt: skip


def test_the_demo_suite_speaks_only_the_words_that_the_tiny_base_has_learnt() -> None:
    for prompt in read_suite("demo"):
        comma = ", " if prompt.language == "en" else "，"
        assert vocabulary(prompt.language).issuperset(prompt.text.split(comma)[1:]), prompt.id
        assert LEAST_WORDS <= count_words(with_subject(prompt, ADA), prompt.language) <= MOST_WORDS


def test_the_lora_is_asked_by_its_trigger_and_the_base_model_by_the_class_noun() -> None:
    frontal, *_ = read_suite("demo")
    assert with_subject(frontal, ADA).startswith("a photo of ohzw woman, head and shoulders")
    assert without_trigger(frontal, "woman").startswith("a photo of a woman, head and shoulders")
    chinese = next(prompt for prompt in read_suite("demo") if prompt.language == "zh")
    assert with_subject(chinese, ADA).startswith("一张 ohzw 女人的照片，")


def test_leak_prompts_ask_for_somebody_else() -> None:
    asked = {prompt.kind: with_subject(prompt, ADA) for prompt in read_suite("demo")}
    assert asked["leak_class"].startswith("a photo of a woman,")
    assert asked["leak_other"].startswith("a photo of a man,")
    assert asked["leak_two"].startswith("a photo of ohzw woman and a man,")


@pytest.mark.parametrize("name", ["demo", "full"])
def test_selection_and_test_share_no_prompt_and_every_aspect_with_two_is_in_both(name: str) -> None:
    prompts = read_suite(name)
    sides = halves(prompts)
    chosen = {prompt.aspect for prompt in prompts if sides[prompt.id] == "selection"}
    told = {prompt.aspect for prompt in prompts if sides[prompt.id] == "test"}
    assert chosen == told == {prompt.aspect for prompt in prompts if prompt.kind == "likeness"}
    counts = [list(sides.values()).count(side) for side in ("selection", "test")]
    assert abs(counts[0] - counts[1]) <= 2


def test_an_unknown_suite_is_told_with_those_there_are() -> None:
    with pytest.raises(InputError, match="name one of demo, full"):
        read_suite("nonesuch")


@pytest.mark.parametrize(
    ("change", "said"),
    [("id: frontal-1", "stands at two prompts"), ("kind: portrait", "prompts.0.kind"), ("colour: red", "unknown key")],
)
def test_a_faulty_suite_is_told_in_one_sentence(change: str, said: str, tmp_path: Path) -> None:
    line = "  - {id: frontal-%d, kind: likeness, aspect: frontal, language: en, text: 'a photo of {subject}, near'%s}\n"
    rows = [line % (number, "") for number in range(1, 6)]
    if change.startswith("id"):
        rows[1] = rows[0]
    elif change.startswith("kind"):
        rows[0] = rows[0].replace("kind: likeness", change)
    else:
        rows[0] = line % (1, f", {change}")
    path = tmp_path / "mine.yaml"
    path.write_text("prompts:\n" + "".join(rows), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        read_suite(str(path))
