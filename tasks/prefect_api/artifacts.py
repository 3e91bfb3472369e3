"""Artifacts that show a run in Prefect's UI: progress bars, numbers, pages, scan results, channels.

No picture of a person goes into Prefect's database: it knows no subjects, so nothing could be taken out of it again.
"""

import base64
import datetime
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterType
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as this_run

from tasks.policy import SERVER_ERRORS
from tasks.prefect_api.artifact_calls import create_artifact, replace, update_artifact
from tasks.prefect_api.stage_numbers import number_rows, score_rows
from tasks.release.channels import Name, channel
from tasks.settings import Settings
from tasks.store.protocol import Store
from tasks.store.releases import manifest_of, releases
from tasks.store.s3 import open_store
from tasks.transfer.staleness import Finding
from tasks.workspace.scratch import scratch
from tasks.workspace.tombstones import Tombstone, unless_forgotten
from zimage.core.losses import read_losses
from zimage.core.signatures import STAGES
from zimage.core.svg_charts import curve
from zimage.curation.contact_sheet import THUMBNAILS
from zimage.evaluation.report.summary import evaluated
from zimage.evaluation.wording import NOT_MEASURED, TOY, cells, quantity, unbroken

ONLY_HERE = "it was only run on this machine; run personalize for it with placement pools once"
PAGES = {"detect": "contact_sheet.html", "evaluate": "report.html"}
PICTURE = re.compile(rf'src="{THUMBNAILS}/([0-9a-f]{{16}}\.jpg)"')  # in a contact sheet
AT_ONCE = 8  # pictures on their way to the store
SUBJECTS_AT_ONCE = 16  # whose releases are looked at side by side
COUNTED = {
    "files": "files on this machine",
    "objects": "objects in the store",
    "versions": "versions of these objects",
    "uploads": "unfinished uploads",
    "bytes": "bytes in all",
    "runs": "runs with their logs",
    "artifacts": "artifacts",
    "repositories": "repositories on the hub",
}
MOVES = {"promote": "promoted", "rollback": "rolled back"}
FORGOTTEN = "forgotten"  # the key of what stays of forgettings, which names nobody
SCAN, OVERVIEW = "retrain", "subjects"  # the keys of the tables about all subjects
# Names of all artifacts about one subject; `forget` finds those of deleted runs by them.
ARTIFACTS = (
    *STAGES,
    *(f"{stage}-progress" for stage in STAGES),
    *(Path(page).stem for page in PAGES.values()),
    *("forget", "loss", "offer", "photos", "promote", "score", "score-page", "score-progress", "training"),
)
SVG = 'xmlns="http://www.w3.org/2000/svg" width="640"'
INK = (
    "<style>svg{background:#fff;font:11px sans-serif}text{fill:#333}"
    ".raw{fill:none;stroke:#bbb}.smooth{fill:none;stroke:#2a6}</style>"
)
UNITS = {"steps_per_s": "steps/s", "peak_gb": "GB"}
FINISHED = "finished"
ENDED = re.compile(r"[a-z]+: ")  # what `ended_text` begins with
WHILE_IT_WORKS = re.compile(r", (\d[\w ]* left|[\d.e+-]+ (steps/s|GB))(?=,|$)")  # of no use once it has ended
SHOWN_EVERY_S = 2.0  # an update of an artifact takes about 10 ms of the server


@dataclass(frozen=True)
class Offer:
    """A result that waits for a person's decision.

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
        self._share = 0.0
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
        self._share = 100.0 * event["done"] / max(event["total"], 1)
        self._show_if_possible(_text(self._known))

    def end(self, how: str) -> None:
        """Show that the stage has ended, in the bar's last text, in place of the time that was left.

        Args:
            how: `finished`, which fills the bar; else what stopped the stage, in words.
        """
        if self._artifact is None:
            return
        if how == FINISHED:
            self._share = 100.0
        self._show_if_possible(ended_text(how, _text({**self._known, "left_s": 0})))

    def _show_if_possible(self, text: str) -> None:
        try:
            self._show(self._share, text)
        except SERVER_ERRORS as error:
            get_run_logger().warning("The progress could not be shown: %s", error)

    def _show(self, share: float, text: str) -> None:
        if self._artifact is None:
            self._artifact = create_artifact("progress", share, key=self._key, description=text)
        else:
            update_artifact(self._artifact, share, description=text)


def end_progress(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Mark the progress bars of a run as ended; a hook for `on_crashed`, `on_cancellation` and `on_failure`.

    A process that was killed could not do it itself.
    """
    with get_client(sync_client=True) as client:
        end_bars(client, flow_run.id, (state.name or "ended").lower())


def end_bars(client: SyncPrefectClient, run: UUID, how: str) -> None:
    """Write into a run's unfinished progress bars how it ended."""
    bars = ArtifactFilter(type=ArtifactFilterType(any_=["progress"]), flow_run_id=ArtifactFilterFlowRunId(any_=[run]))
    for bar in client.read_artifacts(artifact_filter=bars):
        text = bar.description or ""
        if bar.id is not None and not ENDED.match(text):
            replace(client, bar.id, description=ended_text(how, text))


def ended_text(how: str, text: str) -> str:
    """Return the last text of a bar: how the stage ended, and where it was; short, for the UI cuts lines."""
    return f"{how}: {WHILE_IT_WORKS.sub('', text)}"


def _text(event: Mapping[str, Any]) -> str:
    """Return an event as text: `train 200 of 1000, 5 min left, loss 0.012, 3.2 steps/s, 2.1 GB`."""
    parts = [f"{event['name']} {event['done']} of {event['total']}" if event["total"] else f"{event['done']} done"]
    if event.get("left_s") and event["done"] < event["total"]:
        parts.append(f"{_duration(event['left_s'])} left")
    parts += [
        f"{value:.3g} {UNITS[key]}" if key in UNITS else f"{key} {value:.3g}"
        for key, value in event.items()
        if isinstance(value, float)
    ]
    return ", ".join(parts)


def _duration(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds} s"


def show_results(settings: Settings, workspace: Path, stage: str, *, shared: bool) -> None:
    """Create the artifacts of a stage that ran: its metrics, page, curve, and the decision on each photo."""
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


def show_score(settings: Settings, subject: str, folder: Path, key: str) -> str:
    """Create the table of what `score` found and a link to its page in the store, and return the link.

    Args:
        settings: Where things are.
        subject: The subject.
        folder: The results.
        key: Of the page in the store.
    """
    found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    about = "What score found, a row for each LoRA, base and set of pictures"
    create_artifact("table", json.dumps(score_rows(found)), key=artifact_key(subject, "score"), description=about)
    store = open_store(settings.store, pages=settings.pages)
    address = store.link(key, seconds=store.link_max_s)
    says = "\n\n".join(found["says"])
    text = unbroken(f"{says}\n\n[All scores of {subject}]({address})")
    create_artifact("markdown", text, key=artifact_key(subject, "score-page"), description=f"The scores{_until(store)}")
    return address


def _until(store: Store) -> str:
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=store.link_max_s)
    return f"; the link opens it until {until:%Y-%m-%d %H:%M} UTC"


def _stored(settings: Settings, subject: str, workspace: Path, page: Path) -> tuple[str, str]:
    """Upload a page; return its link and the time at which the link expires, as text.

    Pictures beside the page go there too, and it gets a link to each in the place of its relative address: a link opens
    one object only. A browser then loads those that one scrolls to.
    """
    store = open_store(settings.store, pages=settings.pages)
    below = f"subjects/{subject}/pages"
    content = page.read_bytes()
    key = f"{below}/{hashlib.sha256(content).hexdigest()[:16]}/{page.name}"
    pictures = sorted(page.parent.glob(f"{THUMBNAILS}/*.jpg")) if page.name == PAGES["detect"] else []
    with unless_forgotten(store, subject, workspace) as written, scratch(workspace, "page") as folder:
        if pictures:
            written.append(f"{below}/{THUMBNAILS}")
            links = _stored_pictures(store, f"{below}/{THUMBNAILS}", pictures)
            text = PICTURE.sub(lambda found: f'src="{links[found[1]]}"', content.decode())
            page = folder / page.name
            page.write_text(text, encoding="utf-8")
        written.append(key)
        if not store.put_if_absent(key, page) and pictures:
            store.overwrite(key, page)  # the links in it are new
    return store.link(key, seconds=store.link_max_s), _until(store)


def _stored_pictures(store: Store, below: str, pictures: Sequence[Path]) -> dict[str, str]:
    """Return a link to each picture by its name, escaped for HTML; those that the store lacks are sent."""
    names = {path.name: f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}.jpg" for path in pictures}
    present = set(store.list_children(below))
    lacking = {names[path.name]: path for path in pictures if names[path.name] not in present}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda each: store.put_if_absent(f"{below}/{each[0]}", each[1]), lacking.items()))
    return {name: escape(store.link(f"{below}/{md5}", seconds=store.link_max_s)) for name, md5 in names.items()}


def _show_decisions(subject: str, workspace: Path) -> None:
    """Create the table of decisions with reasons; photos are named by their hash."""
    rows = (workspace / "data" / "detect" / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(row) for row in rows]
    shown = [{key: row.get(key, "") for key in ("photo", "decision", "reason")} for row in found]
    key = artifact_key(subject, "photos")
    create_artifact("table", json.dumps(shown), key=key, description="What became of each photo, and why")


def _show_loss(subject: str, workspace: Path) -> None:
    losses = read_losses(workspace / "data" / "train" / "loss.csv")
    drawn = curve([step for step, _ in losses], [loss for _, loss in losses], "steps")
    picture = base64.b64encode(drawn.replace("<svg ", f"<svg {SVG} ", 1).replace(">", f">{INK}", 1).encode()).decode()
    text = f"![training loss](data:image/svg+xml;base64,{picture})"
    create_artifact("markdown", text, key=artifact_key(subject, "loss"), description="Training loss")


def _show_numbers(subject: str, workspace: Path, stage: str) -> None:
    metrics = workspace / "data" / stage / "metrics.json"
    if metrics.is_file():
        found = json.loads(metrics.read_text(encoding="utf-8"))
        about = f"What {stage} found, the most important first"
        rows = json.dumps(number_rows(stage, found))
        create_artifact("table", rows, key=artifact_key(subject, stage), description=about)


def warn_of_verdict(workspace: Path) -> None:
    """Emit an event if the gate failed (see infra/automations.yaml); a poor score is a result, not a failed run."""
    metrics = json.loads((workspace / "data" / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    if metrics["verdict"] == "fail":
        resource = {"prefect.resource.id": f"zimage.subject.{workspace.name}"}
        emit_event("zimage.gate.failed", resource=resource)  # not why: figures would stay in Prefect's events


def show_scan(findings: Sequence[Finding], done: Mapping[str, str], only_here: Sequence[str]) -> None:
    """Create the table of changed subjects and of those with a remark, and count the unchanged.

    Args:
        findings: Of all subjects.
        done: What was done about each of them, in words.
        only_here: Subjects that were not looked at.
    """
    first = ("stopped", "changed", "unchanged")  # a person has to look at what is stopped
    found = sorted(findings, key=lambda each: (first.index(each.verdict), each.subject))
    rows = [
        *(_scan_row(each.subject, each.reason, done[each.subject]) for each in found if done_or_said(each)),
        *(_scan_row(subject, ONLY_HERE, "skipped: it was not looked at") for subject in only_here),
    ]
    counts = Counter(reason.partition(":")[0] for reason in done.values())
    unchanged = counts.pop("nothing", 0)
    about = ", ".join([*(f"{counts[each]} {each}" for each in ("started", "skipped") if counts[each])])
    about = f"{quantity(len(findings), 'subject')} in the store: {f'{about}, ' if about else ''}{unchanged} unchanged"
    create_artifact("table", json.dumps(rows), key=SCAN, description=about)


def done_or_said(finding: Finding) -> bool:
    """Return whether a subject has a line in the table of a scan."""
    return finding.verdict != "unchanged" or bool(finding.reason)


def _scan_row(subject: str, changed: str, done: str) -> dict[str, str]:
    """Return a line with the longest cell last: the UI breaks no line of a table, and cuts off what is too wide."""
    return {"subject": subject, "what was done": done, "what changed": changed}


def show_overview(findings: Sequence[Finding], store: Store) -> None:
    """Show what `overview` returns."""
    rows = overview(findings, store)
    create_artifact(
        "table", json.dumps(rows), key=OVERVIEW, description=f"{quantity(len(rows), 'subject')} in this store"
    )


def overview(findings: Sequence[Finding], store: Store) -> list[dict[str, str]]:
    """Return a row for every subject: its state, what is due, its newest release with the verdict, and its channels."""
    with ThreadPoolExecutor(SUBJECTS_AT_ONCE) as pool:
        return list(pool.map(partial(_overview_row, store), findings))


def _overview_row(store: Store, finding: Finding) -> dict[str, str]:
    """Return the row of a subject; without a release there is nothing that a channel could point to."""
    newest = next(releases(store, finding.subject), None)
    pointers = {name: channel(store, finding.subject, name) if newest else None for name in get_args(Name)}
    return {
        "subject": finding.subject,
        "state": finding.verdict,
        "newest release": f"{newest.release}: {newest.verdict}" if newest else "none",
        **{name: found.release if found else "" for name, found in pointers.items()},
        "consent until": "" if finding.consent_until is None else finding.consent_until.isoformat(),
        "due": ", ".join(finding.kinds) or finding.reason or "nothing",
    }


def show_channel(store: Store, subject: str, name: Name) -> None:
    """Show where a channel points now, with the verdict of that release, and its moves, the newest first."""
    pointer = channel(store, subject, name)
    assert pointer is not None, "a move was just made"
    manifest = manifest_of(store, subject, pointer.release)
    verdict = f", {manifest.verdict}: {manifest.why}" if manifest else ""
    moves = "".join(
        f"| {each.at:%Y-%m-%d %H:%M} | {MOVES[each.kind]} | {each.release} |\n" for each in reversed(pointer.history)
    )
    text = (
        f"**The channel {name} of {subject} points to {pointer.release}**{verdict}\n\n"
        f"| when (UTC) | move | release |\n|---|---|---|\n{moves}\n"
        f"`python -m flows fetch --subject {subject} --channel {name}` brings this release into a folder."
    )
    key = artifact_key(subject, "promote")
    create_artifact("markdown", unbroken(text), key=key, description=f"The channel {name} of {subject}")


def show_listing(subject: str, lines: Sequence[str]) -> None:
    """Create the list of everything about a subject; `forget` finds and deletes it too (see ARTIFACTS)."""
    rows = "".join(f"| {where} | {what.strip()} |\n" for where, _, what in (line.partition(" ") for line in lines))
    text = (
        f"**All there is of {subject}. Nothing was deleted**: run `forget` with *Delete* to delete all of it.\n\n"
        f"| where | what |\n|---|---|\n{rows}"
    )
    create_artifact(
        "markdown", unbroken(text), key=artifact_key(subject, "forget"), description=f"All there is of {subject}"
    )


def show_forgotten(tombstone: Tombstone) -> None:
    """Create the record of an erasure, with counts only: it stays, so it does not say who was forgotten."""
    done = tombstone.forgotten[-1]
    assert done.finished_at is not None
    rows = "".join(f"| {COUNTED.get(each, each)} | {count} |\n" for each, count in done.counts.model_dump().items())
    text = (
        f"**A person was forgotten on {done.finished_at:%Y-%m-%d at %H:%M} UTC.** A second listing was empty, and "
        f"the run is deleted too.\n\n| deleted | count |\n|---|---|\n{rows}\n"
        f"The proof is in the store: `tombstones/{tombstone.subject_sha256}.json`."
    )
    create_artifact("markdown", unbroken(text), key=FORGOTTEN, description="A person was forgotten")


def how_stopped() -> str:
    """Return `cancelled` or `stopped` for this run, which was asked to end."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(this_run.id)).state
    except SERVER_ERRORS:
        return "stopped"
    return "cancelled" if state and (state.is_cancelling() or state.is_cancelled()) else "stopped"


def show_offer(settings: Settings, workspace: Path, *, shared: bool) -> Offer:
    """Show a result that waits for a person's decision, and return it.

    Raises:
        InputError: nothing was evaluated.
    """
    metrics = evaluated(workspace)
    subject = settings.subject(workspace)
    # A list: the dialog breaks no line of a table, and cuts off what is too wide.
    figures = "".join(f"- **{value}{':' * (value == NOT_MEASURED)}** {says}\n" for value, says in cells(metrics))
    text = (
        f"**{subject}: {metrics['verdict']}.** {metrics['why']}\n\n"
        f"[The report]({show_page(settings, workspace, 'evaluate', shared=shared)})\n\n"
        f"{figures}"
    )
    if metrics.get("sampled", {}).get("packaged"):
        text += f"\n{TOY}\n"
    text = unbroken(text)
    create_artifact("markdown", text, key=artifact_key(subject, "offer"), description="What waits for a decision")
    return Offer(text, metrics["chosen"]["sha256"][:16])
