"""Every subject is looked at, and `personalize` is started where something changed."""

import datetime
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.spec import PersonalizeSpec, RetrainSpec
from tasks.elsewhere import at_work, completed_since_due, start
from tasks.scan import Finding, read_project, scan_all
from tasks.settings import Settings, from_environment
from tasks.shown import show_overview, show_scan
from tasks.storage import open_store

WARN_BEFORE = datetime.timedelta(days=30)


@flow(name="retrain", flow_run_name="retrain")
def retrain(spec: RetrainSpec) -> dict[str, int] | State[Any]:
    """Return how many subjects are unchanged, changed and stopped; the table tells the reason of each.

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
    _tell_of_others(settings, {each.subject for each in found})
    working = at_work("personalize")
    findings = [_with_work(each, working) for each in found]
    for finding in findings:
        if finding.reason:
            get_run_logger().info("%s is %s: %s", finding.subject, finding.verdict, finding.reason)
        _warn(finding, today)
    changed = [each for each in findings if each.verdict == "changed" and each.subject not in working]
    runs = {} if spec.only_look else {each.subject: _start(each, spec) for each in changed}
    show_scan(findings, {subject: run.name for subject, run in runs.items()})
    show_overview(findings, store)
    return dict(Counter(each.verdict for each in findings))


def _tell_of_others(settings: Settings, known: Set[str]) -> None:
    """Name the subjects of this machine that no state in the store tells of, which is where a scan looks."""
    others = {each.name for each in settings.workspaces.glob("[!.]*")} - known
    if others:
        get_run_logger().warning(
            "not looked at, for they were only run on this machine: %s; run `personalize` for them with placement "
            "`pools` once",
            ", ".join(sorted(others)),
        )


def _with_work(finding: Finding, working: Mapping[str, str]) -> Finding:
    """Return a finding whose reason says that a changed subject is at work already, if it is."""
    if finding.verdict != "changed" or finding.subject not in working:
        return finding
    return replace(finding, reason=f"{finding.reason}; `{working[finding.subject]}` is at work on it already")


def _start(finding: Finding, spec: RetrainSpec) -> FlowRun:
    asked = PersonalizeSpec(subject=finding.subject, placement="pools", publish=spec.publish)
    return start("personalize", asked, attempt=finding.subject, as_part=False)


def _warn(finding: Finding, today: datetime.date) -> None:
    """Tell whoever listens that a consent has expired or soon will."""
    until = finding.consent_until
    if until is None or until > today + WARN_BEFORE:
        return
    emit_event(
        "zimage.consent.expiring",
        resource={"prefect.resource.id": f"zimage.subject.{finding.subject}"},
        payload={"expires": until.isoformat()},  # not the reason: an event with addresses could not be deleted
    )
