"""Index of all subjects' states, so that a scan opens only those that changed; it may be deleted at any time.

A line holds what a scan needs of one state, with the stamp of the state it was taken from. States have a prefix of
their own (`states/<subject>.json`), so one listing tells the stamps of all as they are now. A line with another stamp
is not used, whoever wrote the state and however. The first line identifies the project; where that changed, no line is.

    {"project": "sha256 of params.yaml, code.yaml, the stages and the presets"}
    {"subject": "ada", "stamp": "\"9bb5…\"", "sources": …, "consent": …, "reasons": [{"kind": …, "text": …}]}
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from pydantic import ValidationError

from tasks.store.protocol import ConflictError, Store
from tasks.workspace.sources import Source
from zimage.consent import Consent
from zimage.core.section import Section

INDEX = "scan/index.jsonl"


Kind = Literal[
    "photos changed",
    "consent changed",
    "decisions changed",
    "base model changed",
    "settings changed",
    "code changed",
    "not finished",
    "newer results",
]


class Reason(Section):
    """Why a subject is run again."""

    kind: Kind
    """In two words, for names and tags of runs."""
    text: str
    """In a sentence's length: what changed, where, from what to what."""


class Known(Section):
    """The part of a state that a scan needs.

    It is all that does not depend on the day, and on nothing outside the state but the project.
    """

    subject: str
    stamp: str
    """Of the state, as a listing tells it; "" where the state may have changed while it was read."""
    sources: dict[str, Source]
    """Where the inputs come from, and what they looked like."""
    consent: Consent | None
    """What was handed over."""
    reasons: list[Reason]
    """Which stages are missing or were made with something else."""


@dataclass
class ScanIndex:
    """The index of states as it was read from the store, and as it will be written.

    Args:
        project: Identifies settings, code and stages.
        tag: Of the version that was read; None where there was none.
        lines: What was read, by subject, not parsed.
        new_lines: What is to be written, by subject.
    """

    project: str
    tag: str | None = None
    lines: dict[str, bytes] = field(default_factory=dict)
    new_lines: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, store: Store, project: str) -> "ScanIndex":
        """Return the index of a store; without lines where it has none, or one of another project."""
        found = store.read(INDEX)
        if found is None:
            return cls(project)
        first, *lines = found.content.splitlines() or [b""]
        if first != _head(project):
            return cls(project, found.tag)
        return cls(project, found.tag, {_subject(line): line for line in lines})

    def get(self, subject: str, stamp: str) -> Known | None:
        """Return what is known of a state with this stamp, or None where it has to be opened."""
        line = self.lines.get(subject)
        try:
            known = Known.model_validate_json(line) if line else None
        except ValidationError:  # of another version of this code
            return None
        if line is None or known is None or known.stamp != stamp:
            return None
        self.new_lines[subject] = line
        return known

    def put(self, known: Known) -> None:
        """Record what was read of a state, unless its stamp is unknown."""
        if known.stamp:
            self.new_lines[known.subject] = known.model_dump_json().encode()

    def write(self, store: Store) -> bool:
        """Write the index if it changed, unless another process did meanwhile; return whether it was written."""
        if self.new_lines == self.lines and (self.new_lines or self.tag is None):
            return False
        content = b"\n".join([_head(self.project), *(self.new_lines[subject] for subject in sorted(self.new_lines))])
        try:
            store.compare_and_swap(INDEX, content, self.tag)
        except ConflictError:
            return False
        return True


def identity(parts: Iterable[object]) -> str:
    """Return the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(list(parts), sort_keys=True, default=str).encode()).hexdigest()


def _head(project: str) -> bytes:
    return json.dumps({"project": project}).encode()


def _subject(line: bytes) -> str:
    """Return the subject of a line: its first field."""
    return line[len(b'{"subject":"') :].partition(b'"')[0].decode()
