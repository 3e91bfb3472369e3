"""Take what a person answered in review.html into a workspace, where the gate reads it."""

from pathlib import Path

from tasks.workspace.sources import content
from zimage.core.errors import InputError
from zimage.core.folder import write_whole
from zimage.core.jsonl import read_rows
from zimage.evaluation.report.summary import ANSWERS
from zimage.evaluation.review import ITEMS, MAX_BYTES, Item, parsed_answers, review_of


def read_review(address: str) -> bytes:
    """Return what review.html saved at `address`, a file or `s3://bucket/key`.

    Raises:
        InputError: there is none.
    """
    found = content(address, max_bytes=MAX_BYTES)
    if found is None:
        raise InputError(f"There is no review {address}; name a file that review.html saved, or s3://bucket/key.")
    return found


def take_review(workspace: Path, address: str) -> None:
    """Copy the answers at `address` to where the gate of `workspace` reads them.

    Args:
        workspace: It has been evaluated.
        address: A file, or `s3://bucket/key` of one.

    Raises:
        InputError: there is none, review.html did not save it, or it is not usable: of other pictures, not complete, or
            too many of the controls are answered wrong.
    """
    found = read_review(address)
    answers = parsed_answers(found, address)
    review = review_of(read_rows(workspace / "data" / "evaluate" / ITEMS, Item), answers)
    if review.unusable:
        raise InputError(review.unusable)
    write_whole(workspace / ANSWERS, found)
