"""None"""

import datetime
import hashlib
from pathlib import Path

import pytest
import yaml

from zimage.consent import consent_in, consent_text, read_consent, require, template
from zimage.core.errors import InputError

TODAY = datetime.date(2026, 6, 1)
GIVEN = {
    "pseudonym": "ada",
    "adult": True,
    "scope": ["training", "publication"],
    "may_publish": False,
    "expires": datetime.date(2026, 6, 1),
    "document": "signed release",
    "document_sha256": "0" * 64,
}


def written(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "consent.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**GIVEN, **changes}.items() if v is not None}), encoding="utf-8")
    return path


def test_a_consent_holds_up_to_its_last_day(tmp_path: Path) -> None:
    require(read_consent(written(tmp_path)), "training", TODAY)
    with pytest.raises(InputError, match="expired on 2026-06-01; ask for a new one"):
        require(read_consent(written(tmp_path)), "training", TODAY + datetime.timedelta(days=1))


@pytest.mark.parametrize(
    ("changes", "purpose", "said"),
    [
        ({"adult": False}, "training", "does not affirm an adult; photos of minors are not used"),
        ({"scope": ["evaluation"]}, "training", "covers evaluation but not training; ask for it"),
        ({}, "publication", "says may_publish: false; ask before"),
    ],
)
def test_a_consent_that_does_not_cover_a_purpose_stops(
    tmp_path: Path, changes: dict[str, object], purpose: str, said: str
) -> None:
    consent = read_consent(written(tmp_path, **changes))
    with pytest.raises(InputError, match=said):
        require(consent, purpose, TODAY)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adult": None}, "`adult` is missing"),
        ({"adult": "yes"}, "`adult` is 'yes'"),
        ({"pseudonym": "Ada Lovelace"}, "`pseudonym` is 'Ada Lovelace'"),
        ({"scope": []}, "`scope`"),
        ({"expires": "never"}, "`expires` is 'never'"),
        ({"document_sha256": "abc"}, "`document_sha256` is 'abc'"),
        ({"real_name": "Ada"}, "unknown key `real_name`"),
    ],
)
def test_a_consent_that_lacks_something_is_told_by_key(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_consent(written(tmp_path, **changes))


@pytest.mark.parametrize("content", ["", "[", "- a list", "\x00", "x" * 200_000])
def test_what_is_no_consent_is_one_sentence(tmp_path: Path, content: str) -> None:
    path = tmp_path / "consent.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"consent\.yaml"):
        read_consent(path)


def test_a_missing_consent_shows_how_one_looks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no photo is opened; write one like this:\npseudonym: ada"):
        read_consent(tmp_path / "consent.yaml")


def test_the_example_is_a_consent(tmp_path: Path) -> None:
    path = tmp_path / "consent.yaml"
    path.write_text(template().replace("<64 hex digits>", "'" + "0" * 64 + "'"), encoding="utf-8")
    assert read_consent(path).pseudonym == "ada"


LAST = datetime.date(2030, 1, 31)


def text(tmp_path: Path, *, adult: bool = True, may_publish: bool = False, description: str = "a form") -> bytes:
    document = tmp_path / "release.pdf"
    document.write_bytes(b"signed")
    return consent_text(
        "ada", document, adult=adult, may_publish=may_publish, expires=LAST, description=description
    ).encode()


def test_what_is_written_is_a_consent_to_what_was_said(tmp_path: Path) -> None:
    consent = consent_in(text(tmp_path), "it")

    assert consent.document_sha256 == hashlib.sha256(b"signed").hexdigest()
    assert (consent.pseudonym, consent.expires, consent.document) == ("ada", LAST, "a form")
    for purpose in ("training", "evaluation"):
        require(consent, purpose, LAST)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="covers training, evaluation but not publication"):
        require(consent, "publication", LAST)
    require(consent_in(text(tmp_path, may_publish=True), "it"), "publication", LAST)


def test_nobody_is_of_age_unless_that_was_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not affirm an adult"):
        require(consent_in(text(tmp_path, adult=False), "it"), "training", LAST)


@pytest.mark.parametrize("description", ["it's: a #form", "true", "two\nlines", "{x}", "1e5", "'"])
def test_any_description_stays_a_text(tmp_path: Path, description: str) -> None:
    assert consent_in(text(tmp_path, description=description), "it").document == description.replace("\n", " ")
