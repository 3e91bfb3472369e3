"""Every subject is looked at, and `personalize` is started where something changed."""

import datetime
from collections import Counter

from prefect import flow
from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event
from prefect.logging import get_run_logger

from flows.spec import PersonalizeSpec, RetrainSpec
from tasks.elsewhere import start
from tasks.scan import Finding, read_project, scan, subjects
from tasks.settings import from_environment
from tasks.shown import show_scan
from tasks.storage import open_store

WARN_BEFORE = datetime.timedelta(days=30)


@flow(name="retrain", flow_run_name="retrain")
def retrain(spec: RetrainSpec) -> dict[str, int]:
    """Return how many subjects are unchanged, changed and stopped; the table tells the reason of each."""
    settings = from_environment()
    store = open_store(settings.store)
    project = read_project(settings.project)
    today = datetime.datetime.now(datetime.UTC).date()
    found = [scan(settings, store, project, subject, today) for subject in subjects(store)]
    findings = [each for each in found if each is not None]
    for finding in findings:
        if finding.verdict != "unchanged":
            get_run_logger().info("%s is %s: %s", finding.subject, finding.verdict, finding.reason)
        _warn(finding, today)
    runs = {each.subject: _start(each, spec) for each in findings if each.verdict == "changed" and not spec.only_look}
    show_scan(findings, {subject: run.name for subject, run in runs.items()})
    return dict(Counter(each.verdict for each in findings))


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
        payload={"expires": until.isoformat(), "reason": finding.reason or "It will have to be renewed."},
    )
