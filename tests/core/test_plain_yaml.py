import pytest
import yaml

from zimage.core.plain_yaml import MAX_DEPTH, load_plain

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{each}: &a{each} [*a{each - 1}, *a{each - 1}]\n" for each in range(1, 60))


def test_plain_values_are_read() -> None:
    text = "who: ada\nsteps: 3\nrates: [0.5, null]\nday: 2026-11-23\n"

    assert load_plain(text) == yaml.safe_load(text)
    assert load_plain("photo: 007\n", as_text=True) == {"photo": "007"}
    assert load_plain("") is None


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BOMB, "aliases such as .name are not read; write the value out"),
        ("a: &a [*a]", "aliases"),
        ("a: &a {b: 1}\nc:\n  <<: *a", "aliases"),
        ("[" * 20_000, f"nested deeper than {MAX_DEPTH} levels"),
        ("{a: " * 20_000, f"nested deeper than {MAX_DEPTH} levels"),
    ],
)
def test_what_would_grow_is_refused(text: str, why: str, as_text: bool) -> None:
    with pytest.raises(yaml.YAMLError, match=why):
        load_plain(text, as_text=as_text)


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("text", ["a: true\nb: 1\na: false\n", "x: {a: 1, 'a': 1}\n"])
def test_a_key_that_stands_there_twice_is_refused(text: str, as_text: bool) -> None:
    with pytest.raises(yaml.YAMLError, match="the key `a` stands there twice; keep one of them"):
        load_plain(text, as_text=as_text)


@pytest.mark.parametrize("text", ["a: " + "9" * 5000, "a: 2026-02-31", "!!python/object/apply:os.getcwd []"])
def test_what_is_no_plain_value_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        load_plain(text)
