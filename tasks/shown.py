"""What a person sees of a run in Prefect's UI: a bar while a stage works, its numbers and findings when it is done.

No picture of a person goes into Prefect's database: it knows no subjects, so nothing could be taken out of it again.
"""

import base64
import csv
import datetime
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

from prefect.events import emit_event
from prefect.logging import get_run_logger

from tasks.artifacts import create_artifact, update_artifact
from tasks.channels import Name, channel
from tasks.policy import SERVER_ERRORS
from tasks.release import releases
from tasks.scan import Finding
from tasks.settings import Settings
from tasks.storage import open_store
from tasks.store import Store
from tasks.tombstones import unless_forgotten
from zimage.identity.charts import curve
from zimage.signatures import STAGES
from zimage.summary import summary

PAGES = {"detect": "contact_sheet.html", "evaluate": "report.html"}
SCAN, OVERVIEW = "retrain", "subjects"  # the keys of the tables about all subjects
# Names of all artifacts about one subject; `forget` finds those of deleted runs by them.
ARTIFACTS = (
    *STAGES,
    *(f"{stage}-progress" for stage in STAGES),
    *(Path(page).stem for page in PAGES.values()),
    *("loss", "offer", "photos", "training"),
)
SVG = 'xmlns="http://www.w3.org/2000/svg" width="640"'
INK = (
    "<style>svg{background:#fff;font:11px sans-serif}text{fill:#333}"
    ".raw{fill:none;stroke:#bbb}.smooth{fill:none;stroke:#2a6}</style>"
)
UNITS = {"steps_per_s": "steps/s", "peak_gb": "GB"}
SHOWN_EVERY_S = 2.0  # an update of an artifact takes about 10 ms of the server


@dataclass(frozen=True)
class Offer:
    """What a person is asked about.

    Args:
        text: Verdict and figures, as Markdown.
        content: Identifies what is offered: 16 hex digits of the LoRA's SHA-256.
    """

    text: str
    content: str


def artifact_key(subject: str, name: str) -> str:
    """Return the key of a subject's artifact, by its name in ARTIFACTS; Prefect takes no underscores in a key."""
    assert name in ARTIFACTS
    plain = subject.replace("_", "-")
    told_apart = "" if plain == subject else f"-{hashlib.sha256(subject.encode()).hexdigest()[:4]}"
    return f"{plain}{told_apart}-{name.replace('_', '-')}"


def in_store(settings: Settings, *, shared: bool) -> bool:
    """Return whether pages go into the store: where work is shared, and where a browser can open them from there."""
    return shared or bool(settings.pages)


class Bar:
    """A progress artifact that is made with the first step and updated at most every few seconds."""

    def __init__(self, subject: str, stage: str) -> None:
        self._key = artifact_key(subject, f"{stage}-progress")
        self._artifact: UUID | None = None
        self._last = float("-inf")
        self._known: dict[str, Any] = {}

    def update(self, event: dict[str, Any]) -> None:
        """Show one progress event of the stage: its share as a bar, its numbers as text.

        A server that is away, or starts anew, costs this picture of it and never the stage.
        """
        if event["name"] != self._known.get("name"):
            self._known = {}
        self._known |= event  # the last event of a piece of work has no numbers of its own
        now = time.monotonic()
        if now - self._last < SHOWN_EVERY_S and event["done"] < event["total"]:
            return
        self._last = now
        share = 100.0 * event["done"] / max(event["total"], 1)
        try:
            self._show(share, _text(self._known))
        except SERVER_ERRORS as error:
            get_run_logger().warning("The progress could not be shown: %s", error)

    def _show(self, share: float, text: str) -> None:
        if self._artifact is None:
            self._artifact = create_artifact("progress", share, key=self._key, description=text)
        else:
            update_artifact(self._artifact, share, description=text)


def _text(event: Mapping[str, Any]) -> str:
    """Return an event as a person reads it: `train 200 of 1000, loss 0.012, 3.2 steps/s, 2.1 GB, 5 min left`."""
    told = [f"{event['name']} {event['done']} of {event['total']}" if event["total"] else f"{event['done']} done"]
    told += [
        f"{value:.3g} {UNITS[key]}" if key in UNITS else f"{key} {value:.3g}"
        for key, value in event.items()
        if isinstance(value, float)
    ]
    if "left_s" in event and event["done"] < event["total"]:
        told.append(f"{_duration(event['left_s'])} left")
    return ", ".join(told)


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"


def show_results(settings: Settings, workspace: Path, stage: str, *, shared: bool) -> None:
    """Show what a stage that ran has found: its numbers, its page, its curve, what became of each photo."""
    subject = settings.subject(workspace)
    _show_numbers(subject, workspace, stage)
    if stage in PAGES:
        show_page(settings, workspace, stage, shared=shared)
    if stage == "detect":
        _show_decisions(subject, workspace)
    if stage == "train":
        _show_loss(subject, workspace)


def show_page(settings: Settings, workspace: Path, stage: str, *, shared: bool) -> str:
    """Show a link to a stage's page and return it: to the file, or to a copy in the store (see `in_store`).

    The copy lies below the subject's prefix and goes with it.
    """
    subject, page = settings.subject(workspace), workspace / "data" / stage / PAGES[stage]
    title = page.stem.replace("_", " ")
    address, until = page.resolve().as_uri(), ""
    if in_store(settings, shared=shared):
        address, until = _stored(settings, subject, workspace, page)
    called, key = f"{title} of {subject}".capitalize(), artifact_key(subject, page.stem)
    create_artifact("markdown", f"[{called}]({address})", key=key, description=f"The {title}{until}")
    return address


def show_page_again(settings: Settings, workspace: Path, stage: str, *, shared: bool) -> None:
    """Show a new link to the page of a stage that was not run, where the page is here: the last may have expired."""
    has_page = stage in PAGES and (workspace / "data" / stage / PAGES[stage]).is_file()
    if has_page and in_store(settings, shared=shared):
        show_page(settings, workspace, stage, shared=shared)


def _stored(settings: Settings, subject: str, workspace: Path, page: Path) -> tuple[str, str]:
    """Put a page into the store; return the link to it, and until when it opens it, for a person."""
    store = open_store(settings.store, pages=settings.pages)
    sha256 = hashlib.sha256(page.read_bytes()).hexdigest()
    key = f"subjects/{subject}/pages/{sha256[:16]}/{page.name}"
    with unless_forgotten(store, subject, workspace) as written:
        written.append(key)
        store.put_if_absent(key, page)
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=store.link_max_s)
    return store.link(key, seconds=store.link_max_s), f"; the link opens it until {until:%Y-%m-%d %H:%M} UTC"


def _show_decisions(subject: str, workspace: Path) -> None:
    """Show what became of each photo and why; photos are told by their hash."""
    rows = (workspace / "data" / "detect" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(row) for row in rows]
    shown = [{key: row.get(key, "") for key in ("photo", "decision", "reason")} for row in found]
    key = artifact_key(subject, "photos")
    create_artifact("table", json.dumps(shown), key=key, description="What became of each photo, and why")


def _show_loss(subject: str, workspace: Path) -> None:
    with (workspace / "data" / "train" / "loss.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    drawn = curve([float(row["step"]) for row in rows], [float(row["loss"]) for row in rows], "steps")
    picture = base64.b64encode(drawn.replace("<svg ", f"<svg {SVG} ", 1).replace(">", f">{INK}", 1).encode()).decode()
    text = f"![training loss](data:image/svg+xml;base64,{picture})"
    create_artifact("markdown", text, key=artifact_key(subject, "loss"), description="Training loss")


def _show_numbers(subject: str, workspace: Path, stage: str) -> None:
    metrics = workspace / "data" / stage / "metrics.json"
    if metrics.is_file():
        found = json.loads(metrics.read_text(encoding="utf-8"))
        rows = [{"number": key, "value": _short(value)} for key, value in found.items() if _is_plain(value)]
        key = artifact_key(subject, stage)
        create_artifact("table", json.dumps(rows), key=key, description=f"Numbers of {stage}")


def _is_plain(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def warn_of_verdict(workspace: Path) -> None:
    """Tell whoever listens if the gate failed (infra/automations.yaml); a poor score is a result and no failed run."""
    metrics = json.loads((workspace / "data" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    if metrics["verdict"] == "fail":
        resource = {"prefect.resource.id": f"zimage.subject.{workspace.name}"}
        emit_event("zimage.gate.failed", resource=resource)  # not why: figures would stay in Prefect's events


def show_scan(findings: Sequence[Finding], started: Mapping[str, str]) -> None:
    """Show what became of each subject that is not unchanged, or of which something has to be said; and how many are.

    Args:
        findings: Of all subjects.
        started: The runs that were started, by subject.
    """
    told = [each for each in findings if each.verdict != "unchanged" or each.reason]
    unchanged = sum(each.verdict == "unchanged" for each in findings)
    rows = [
        {"subject": each.subject, "found": each.verdict, "reason": each.reason, "run": started.get(each.subject, "")}
        for each in told
    ]
    about = f"{len(findings)} subjects, {unchanged} of them unchanged"
    create_artifact("table", json.dumps(rows), key=SCAN, description=about)


def show_overview(findings: Sequence[Finding], store: Store) -> None:
    """Show a line for every subject: its state, what is due, its newest release with the verdict, and its channels."""
    rows = [
        {
            "subject": each.subject,
            "state": each.verdict,
            "due": each.reason or "nothing",
            "consent until": "" if each.consent_until is None else each.consent_until.isoformat(),
            "newest release": f"{newest.release}: {newest.verdict}" if newest else "none",
            **{name: found.release if found else "" for name, found in pointers.items()},
        }
        for each in findings
        for newest in [next(iter(releases(store, each.subject)), None)]
        for pointers in [{name: channel(store, each.subject, name) for name in get_args(Name)}]
    ]
    about = f"All {len(rows)} subjects that this store knows"
    create_artifact("table", json.dumps(rows), key=OVERVIEW, description=about)


def show_offer(settings: Settings, workspace: Path, *, shared: bool) -> Offer:
    """Show a result that waits for a person's decision, and return it.

    Raises:
        InputError: nothing was evaluated.
    """
    verdict, *figures, _report, _lora = summary(workspace)
    metrics = json.loads((workspace / "data" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    listed = "".join(f"\n- {figure.strip()}" for figure in figures)
    subject = settings.subject(workspace)
    text = f"**{subject}: {verdict.removeprefix('verdict').strip()}**\n{listed}\n\n"
    text += f"[The report]({show_page(settings, workspace, 'evaluate', shared=shared)})\n"
    create_artifact("markdown", text, key=artifact_key(subject, "offer"), description="What waits for a decision")
    return Offer(text, metrics["chosen"]["sha256"][:16])
