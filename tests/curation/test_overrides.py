from pathlib import Path

import pytest

from zimage.core.errors import InputError
from zimage.curation.overrides import Override, read_overrides


def written(tmp_path: Path, text: str) -> Path:
    (tmp_path / "decisions.yaml").write_text(text, encoding="utf-8")
    return tmp_path


def test_no_file_and_an_empty_one_decide_nothing(tmp_path: Path) -> None:
    assert read_overrides(tmp_path) == {}
    assert read_overrides(written(tmp_path, "# nothing yet\n")) == {}


def test_decisions_are_read_by_short_and_by_full_hash(tmp_path: Path) -> None:
    text = "4f1d0c2b9a8e7766: {decision: reject, reason: eyes closed}\n"
    text += f"{'ab' * 32}: {{decision: holdout, reason: good}}\n"
    assert read_overrides(written(tmp_path, text)) == {
        "4f1d0c2b9a8e7766": Override("reject", "eyes closed"),
        "ab" * 8: Override("holdout", "good"),
    }


def test_a_hash_of_digits_only_keeps_its_zeros(tmp_path: Path) -> None:
    (photo,) = read_overrides(written(tmp_path, "0123456701234567: {decision: keep, reason: it is her}"))
    assert photo == "0123456701234567"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "IMG_1.jpg: {decision: keep, reason: x}",
            "'IMG_1.jpg' is not the hash of a photo; copy it from the contact sheet",
        ),
        ("4f1d0c2b9a8e7766: {decision: maybe, reason: x}", "is 'maybe'; choose one of keep, reject, holdout"),
        ("4f1d0c2b9a8e7766: {decision: keep}", "needs a decision .* and a reason"),
        ("4f1d0c2b9a8e7766: {decision: keep, reason: ''}", "needs a decision .* and a reason"),
        ("4f1d0c2b9a8e7766: keep", "needs a decision"),
        ("- 4f1d0c2b9a8e7766", "must map a photo's hash to a decision"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_what_cannot_be_obeyed_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_overrides(written(tmp_path, text))
