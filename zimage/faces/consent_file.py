"""Writing a subject's consent file from the document that the person signed."""

import datetime
import hashlib
from pathlib import Path

from zimage.errors import InputError
from zimage.faces.consent import consent_in

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
