"""The decision about one file, filled in step by step."""

from dataclasses import dataclass, field

from zimage.curation.crops import Plan
from zimage.curation.overrides import Override
from zimage.curation.subject_match import Match
from zimage.faces.observation import Observation, ObservedFace
from zimage.photos.rows import Box, Decision, PhotoRow, Session


@dataclass(eq=False)
class PhotoDecision:
    """A file whose decision is filled in step by step."""

    row: PhotoRow
    seen: Observation | None
    override: Override | None = None
    decision: Decision = "train"
    reason: str = "kept"
    detail: str = ""
    match: Match | None = None
    unlike: float | None = None
    quality: float | None = None
    shot: int | None = None
    burst: int | None = None
    session: Session | None = None
    duplicate_of: str | None = None
    plans: list[Plan] = field(default_factory=list)

    @property
    def open(self) -> bool:
        """Whether it is not rejected or sent to review so far."""
        return self.decision == "train"

    @property
    def chosen(self) -> bool:
        """Whether it is trained on or held out."""
        return self.decision in {"train", "holdout"}

    @property
    def other_boxes(self) -> list[Box]:
        """Boxes of the faces that are not the subject's."""
        assert self.seen is not None
        return [face.measured.box_xyxy for face in self.seen.faces if face is not self.subject]

    @property
    def insisted(self) -> bool:
        """Whether decisions.yaml keeps it against any limit."""
        return self.override is not None and self.override.decision != "reject"

    @property
    def subject(self) -> ObservedFace:
        """The subject's face."""
        assert self.seen is not None and self.match is not None
        return self.seen.faces[self.match.face]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        assert self.seen is not None
        return self.seen.width, self.seen.height

    def end(self, decision: Decision, reason: str, detail: str) -> None:
        """Reject it or send it to review; if decisions.yaml keeps it, only record the reason."""
        if self.insisted:
            self.detail = f"{self.detail} {detail}".strip()
        else:
            self.decision, self.reason, self.detail = decision, reason, detail
