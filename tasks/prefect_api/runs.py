"""Query and delete what Prefect stores about a subject: runs, logs and artifacts, found by the runs' parameters."""

import datetime
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, State, StateType
from prefect.events.filters import EventAnyResourceFilter, EventFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling
from pydantic import TypeAdapter

from tasks.prefect_api.artifact_calls import replace
from tasks.prefect_api.artifacts import ARTIFACTS, OVERVIEW, SCAN, artifact_key

P = ParamSpec("P")

FORGET = "forget"  # the name of runs that forget, which names nobody
PAGE = 200
WORKS = frozenset({StateType.RUNNING, StateType.PENDING, StateType.CANCELLING})
LOGS_COME_WITHIN_S = 5.0  # of a run's end: they are sent every 2 s (PREFECT_LOGGING_TO_API_BATCH_INTERVAL)
LOGS_GO_WITHIN_S = 60.0
LOOK_EVERY_S = 0.2
VACUUMED_WITHIN = datetime.timedelta(hours=1)  # PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS, of a server that runs


@dataclass(frozen=True)
class Runs:
    """The runs of a subject with their artifacts and tables.

    Args:
        runs: Flow runs, by id; their task runs and logs go with them.
        working: Those that are under way.
        artifacts: Artifacts of the runs, and those of deleted runs by their keys.
        tables: Artifacts about all subjects, of scans, with a line about this one.
        told_until: When the last of the server's events about the runs is dropped; None if there are none.
    """

    runs: list[FlowRun]
    artifacts: list[UUID]
    tables: list[Artifact]
    told_until: datetime.datetime | None

    @property
    def working(self) -> list[FlowRun]:
        """Return the runs that are under way; not another forgetting, which has the subject's lease or was lost."""
        return [run for run in self.runs if run.state_type in WORKS and run.name != FORGET]


def limit_of(subject: str) -> str:
    """Return the name of the subject's concurrency limit; events tell it for as long as a server keeps them."""
    return f"subject-{hashlib.sha256(subject.encode()).hexdigest()[:16]}"


def runs_of(subject: str, *, but: UUID | str | None = None) -> Runs:
    """Return everything on Prefect's server about `subject`, except the run `but`."""
    with get_client(sync_client=True) as client:
        everything = list(_all_runs(client))
        runs = [run for run in everything if _is_about(run, subject) and str(run.id) != str(but)]
        ids = {run.id for run in runs}
        others = {run.id for run in everything if subject_of(run)} - ids
        keys = ArtifactFilterKey(any_=[artifact_key(subject, name) for name in ARTIFACTS])
        found = [
            *(one for start in range(0, len(runs), PAGE) for one in _artifacts_of(client, runs[start : start + PAGE])),
            *(one for one in _artifacts(client, ArtifactFilter(key=keys)) if one.flow_run_id not in others),
        ]
        of_all = ArtifactFilter(key=ArtifactFilterKey(any_=[SCAN, OVERVIEW]))
        tables = [one for one in _artifacts(client, of_all) if _lines_without(one, subject) is not None]
        return Runs(runs, sorted({one.id for one in found if one.id}), tables, _told_until(client, list(ids)))


def cancel(runs: list[FlowRun]) -> None:
    """Ask for the end of runs; a worker ends those it started, and a run on its way is ended before it begins."""
    with get_client(sync_client=True) as client:
        for run in runs:
            asked: State[Any] = Cancelling() if run.state_type is StateType.RUNNING else Cancelled()
            client.set_flow_run_state(run.id, asked, force=True)


def delete(found: Runs, subject: str) -> None:
    """Delete runs with their task runs and logs, artifacts, and the subject's concurrency limit; gone is gone.

    All artifacts are emptied before the first is deleted: Prefect writes an event with the content of an artifact that
    is deleted, or with that of the one before it, which then is the newest of its key. A table about all subjects loses
    its line about this one and stays, since such an event would hold the lines about the others.
    """
    _wait_for_last_words(found.runs)
    with get_client(sync_client=True) as client:
        for artifact in found.artifacts:
            _unless_gone(replace, client, artifact, data=None, description=None)
        for table in found.tables:
            assert table.id is not None
            _unless_gone(replace, client, table.id, data=json.dumps(_lines_without(table, subject)))
        for artifact in found.artifacts:
            _unless_gone(client.delete_artifact, artifact)
        for run in found.runs:
            _unless_gone(client.delete_flow_run, run.id)
        _unless_gone(client.delete_global_concurrency_limit_by_name, limit_of(subject))
        _wait_for_logs(client, [run.id for run in found.runs])


def drop_photo(found: Runs, subject: str, photo: str) -> None:
    """Take the lines about a photo, by the name that results give it, out of the tables about a subject's photos.

    Runs that only listed what there is of a photo are deleted: they were asked for it by a file's name.
    """
    listed = [run.id for run in found.runs if run.name == FORGET and run.parameters["spec"].get("photo")]
    key = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact_key(subject, "photos")]))
    with get_client(sync_client=True) as client:
        for table in list(_artifacts(client, key)):
            left = _lines_without(table, photo)
            if left is not None:
                assert table.id is not None
                _unless_gone(replace, client, table.id, data=json.dumps(left))
        for run in listed:
            _unless_gone(client.delete_flow_run, run)


def delete_run(run: UUID) -> None:
    """Delete one run, with its logs; for a run that deletes itself when it has ended."""
    with get_client(sync_client=True) as client:
        _unless_gone(client.delete_flow_run, run)


def _all_runs(client: SyncPrefectClient) -> Iterator[FlowRun]:
    offset = 0
    while page := client.read_flow_runs(limit=PAGE, offset=offset):
        yield from page
        offset += len(page)


def subject_of(run: FlowRun) -> str:
    """Return the subject of a run; "" if it is for none or for all."""
    spec = run.parameters.get("spec")
    return str(spec.get("subject", "")) if isinstance(spec, dict) else ""


def _is_about(run: FlowRun, subject: str) -> bool:
    return subject_of(run) == subject or f"subject:{subject}" in run.tags


def _artifacts_of(client: SyncPrefectClient, runs: list[FlowRun]) -> Iterator[Artifact]:
    return _artifacts(client, ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id for run in runs])))


def _artifacts(client: SyncPrefectClient, wanted: ArtifactFilter) -> Iterator[Artifact]:
    offset = 0
    while page := client.read_artifacts(artifact_filter=wanted, limit=PAGE, offset=offset):
        yield from page
        offset += len(page)


def _told_until(client: SyncPrefectClient, runs: list[UUID]) -> datetime.datetime | None:
    """Return when the server will have dropped the last of its events about these runs."""
    newest = []
    for start in range(0, len(runs), PAGE):
        about = EventAnyResourceFilter(id=[f"prefect.flow-run.{run}" for run in runs[start : start + PAGE]])
        newest += client.read_events(EventFilter(any_resource=about), limit=1).events
    if not newest:
        return None
    settings = client.request("GET", "/admin/settings").json()
    retention = TypeAdapter(datetime.timedelta).validate_python(settings["server"]["events"]["retention_period"])
    return max(event.occurred for event in newest) + retention + VACUUMED_WITHIN


def _lines_without(artifact: Artifact, subject: str) -> list[Any] | None:
    """Return the rows of a table but those about the subject; None where it has none, or is no table."""
    if artifact.type != "table" or not isinstance(artifact.data, str):
        return None
    rows = json.loads(artifact.data)
    if not isinstance(rows, list):
        return None
    left = [row for row in rows if not (isinstance(row, dict) and subject in row.values())]
    return left if len(left) < len(rows) else None


def _unless_gone(do: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    try:
        do(*args, **kwargs)
    except ObjectNotFound:
        return


def _wait_for_last_words(runs: list[FlowRun]) -> None:
    """Wait until the last log lines of runs that have just ended are there: those that come later would stay."""
    ended = max((run.end_time for run in runs if run.end_time), default=None)
    if ended is not None:
        since_s = (datetime.datetime.now(datetime.UTC) - ended).total_seconds()
        time.sleep(min(max(LOGS_COME_WITHIN_S - since_s, 0.0), LOGS_COME_WITHIN_S))


def _wait_for_logs(client: SyncPrefectClient, runs: list[UUID]) -> None:
    """Wait until the server has deleted the logs of deleted runs, which it does a little later by itself.

    Raises:
        TimeoutError: it has not.
    """
    deadline = time.monotonic() + LOGS_GO_WITHIN_S
    for start in range(0, len(runs), PAGE):
        of = LogFilter(flow_run_id=LogFilterFlowRunId(any_=runs[start : start + PAGE]))
        while client.read_logs(log_filter=of, limit=1):
            if time.monotonic() > deadline:
                raise TimeoutError("Prefect's server still has logs of deleted runs; run again.")
            time.sleep(LOOK_EVERY_S)
