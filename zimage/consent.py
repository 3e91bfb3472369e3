"""Read and check the subject's consent, which is required before any photo is opened, and write it from a document."""

import datetime
import hashlib
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field

from zimage.core.errors import InputError
from zimage.core.plain_yaml import load_plain
from zimage.core.section import Section, checked

Purpose = Literal["training", "evaluation", "publication"]

MAX_CONSENT_BYTES = 100_000


def template(pseudonym: str = "ada") -> str:
    """Return the text of a consent file in which only the document's hash has to be filled in."""
    return (
        f"pseudonym: {pseudonym}\nadult: true\nscope: [training, evaluation]\nmay_publish: false\n"
        "expires: 2027-12-31\ndocument: signed release, scan 3\ndocument_sha256: <64 hex digits>"
    )


class Consent(Section):
    """What a person agreed to, in a file that names them by a pseudonym only."""

    pseudonym: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{1,40}$")]
    """How the subject is called everywhere in the project; never a real name."""
    adult: bool
    """The person affirmed to be of age; false or absent stops the run."""
    scope: Annotated[list[Purpose], Field(min_length=1)]
    """What the photos may be used for."""
    may_publish: bool
    """Whether the trained weights and pictures made with them may leave the machines they were made on."""
    expires: datetime.date
    """Last day on which the consent holds."""
    document: str
    """What was signed, or why no signature is needed; no names."""
    document_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """SHA-256 of the signed document (of the work itself for a portrait in the public domain)."""


def read_consent(path: Path) -> Consent:
    """Return the consent in a YAML file.

    Raises:
        InputError: there is none, or it lacks something; the sentence shows how one looks.
    """
    if not path.is_file():
        raise InputError(f"There is no consent file {path}, so no photo is opened; write one like this:\n{template()}")
    if path.stat().st_size > MAX_CONSENT_BYTES:
        raise InputError(f"{path} is larger than {MAX_CONSENT_BYTES} bytes; a consent file has a dozen lines.")
    return consent_in(path.read_bytes(), str(path))


def consent_in(content: bytes, where: str) -> Consent:
    """Return the consent that the bytes of a YAML file hold; `where` names the file in the error.

    Raises:
        InputError: it is none, or it lacks something.
    """
    try:
        found = load_plain(content.decode("utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(
            f"{where} is not valid YAML ({' '.join(str(error).split())}); correct it and run again."
        ) from None
    if not isinstance(found, dict):
        raise InputError(f"{where} must hold a consent such as:\n{template()}")
    return checked(found, Consent, where)


def require(consent: Consent, purpose: Purpose, today: datetime.date) -> None:
    """Pass if the subject agreed to `purpose` and still does on the day `today`.

    Raises:
        InputError: it is expired, excludes the purpose, or does not affirm that the person is of age.
    """
    if not consent.adult:
        raise InputError(
            f"The consent of {consent.pseudonym!r} does not affirm an adult; photos of minors are not used."
        )
    if consent.expires < today:
        raise InputError(
            f"The consent of {consent.pseudonym!r} expired on {consent.expires}; ask for a new one before going on, "
            "and delete the photos if it is not given."
        )
    if purpose not in consent.scope:
        raise InputError(
            f"The consent of {consent.pseudonym!r} covers {', '.join(consent.scope)} but not {purpose}; "
            "ask for it, or leave this subject out."
        )
    if purpose == "publication" and not consent.may_publish:
        raise InputError(
            f"The consent of {consent.pseudonym!r} says may_publish: false; ask before anything is published."
        )


TEXT = """\
# What a person agreed to, by the document that is named at the end; the person is named by a pseudonym only.
pseudonym: {pseudonym}
adult: {adult}  # true once the person has affirmed to be of age; no photo is used before
scope: [{scope}]  # of training, evaluation, publication
may_publish: {may_publish}  # whether the LoRA and its pictures may leave the machines they were made on
expires: {expires}  # the last day on which the consent holds
document: {description}  # what was signed; no names
document_sha256: {sha256}
"""


def consent_text(
    pseudonym: str, document: Path, *, adult: bool, may_publish: bool, expires: datetime.date, description: str
) -> str:
    """Return the text of a consent file.

    Args:
        pseudonym: How the subject is called in the project.
        document: What was signed; only its hash is stored.
        adult: The person affirmed to be of age.
        may_publish: The person agreed to publication.
        expires: The last day.
        description: What was signed, in words without a name.

    Raises:
        InputError: there is no such document, or a value is not valid.
    """
    if not document.is_file():
        raise InputError(f"There is no document {document}; name the file of what the person signed.")
    with document.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    text = TEXT.format(
        pseudonym=pseudonym,
        adult=_word(adult),
        scope=", ".join(["training", "evaluation", *(["publication"] if may_publish else [])]),
        may_publish=_word(may_publish),
        expires=expires,
        description=_quoted(description),
        sha256=f"'{sha256}'",
    )
    consent_in(text.encode(), "the consent")
    return text


def _word(value: bool) -> str:
    return "true" if value else "false"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''").replace("\n", " ") + "'"
