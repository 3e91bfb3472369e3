"""Flow `retrain`: scan all subjects and start `personalize` for each one that is stale."""

import datetime
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.spec import PersonalizeSpec, RetrainSpec
from tasks.phases.remote_runs import at_work, completed_since_due, start
from tasks.prefect_api.artifacts import ONLY_HERE, show_overview, show_scan
from tasks.prefect_api.run_labels import name_this_run, tag_this_run
from tasks.settings import Settings, from_environment
from tasks.store.s3 import open_store
from tasks.transfer.staleness import Finding, read_project, scan_all

WARN_BEFORE = datetime.timedelta(days=30)


@flow(name="retrain", flow_run_name=name_this_run, on_running=[tag_this_run])
def retrain(spec: RetrainSpec) -> dict[str, int] | State[Any]:
    """Scan all subjects and start those that changed; return the counts. A table gives the reason of each.

    Where a `personalize` has not ended yet, no other is started: it would wait for the subject, and be given up.
    A scheduled run that is late ends as `Skipped` if a scan of the same kind has been made since it was due: after a
    pause of any length one run catches up, and the others have nothing left to do.
    """
    for other in completed_since_due():
        if RetrainSpec.model_validate(other.parameters["spec"]) == spec:
            began = f"{other.start_time:%Y-%m-%d %H:%M} UTC"
            return Completed(
                name="Skipped", message=f"A scan that began at {began}, after this one was due, was enough."
            )
    settings = from_environment()
    store = open_store(settings.store)
    project = read_project(settings.project)
    today = datetime.datetime.now(datetime.UTC).date()
    found = scan_all(settings, store, project, today)
    working = at_work("personalize")
    for finding in found:
        if finding.reason:
            get_run_logger().info("%s is %s: %s", finding.subject, finding.verdict, finding.reason)
        _warn(finding, today)
    done = {each.subject: _done(each, spec, working) for each in found}
    show_scan(found, done, _only_here(settings, done))
    show_overview(found, store)
    return dict(Counter(each.verdict for each in found))


def _only_here(settings: Settings, known: Collection[str]) -> list[str]:
    """Return the subjects of this machine that have no state in the store, and which a scan therefore misses."""
    made = {each.parents[1].name for each in settings.workspaces.glob("[!.]*/.dvc/config")}  # `score` alone makes none
    others = sorted(made - set(known))
    if others:
        get_run_logger().warning("%s: %s", ", ".join(others), ONLY_HERE)
    return others


def _done(finding: Finding, spec: RetrainSpec, working: Mapping[str, str]) -> str:
    """Start the subject's run if it is needed; return what was done, or why nothing was, in words."""
    match finding.verdict:
        case "unchanged":
            return "nothing: unchanged"
        case "stopped":
            return "skipped: it may not or cannot be run now"
    if finding.subject in working:
        return f"skipped: {working[finding.subject]} is at work on it already"
    if spec.only_look:
        return "skipped: this run only looked"
    asked = PersonalizeSpec(subject=finding.subject, placement="pools", publish=spec.publish)
    run = start("personalize", asked, attempt=finding.subject, as_part=False, reasons=finding.kinds)
    return f"started: {run.name}"


def _warn(finding: Finding, today: datetime.date) -> None:
    """Emit an event for a consent that has expired or will soon."""
    until = finding.consent_until
    if until is None or until > today + WARN_BEFORE:
        return
    emit_event(
        "zimage.consent.expiring",
        resource={"prefect.resource.id": f"zimage.subject.{finding.subject}"},
        payload={"expires": until.isoformat()},  # not the reason: an event with addresses could not be deleted
    )
