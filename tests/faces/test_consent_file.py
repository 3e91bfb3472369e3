import datetime
import hashlib
from pathlib import Path

import pytest

from zimage.errors import InputError
from zimage.faces.consent import consent_in, require
from zimage.faces.consent_file import consent_text

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
