"""Names and tags of flow runs in Prefect's UI: phase, subject and reason.

    name  learn ada (photos changed)
    tags  phase:learn, subject:ada, why:photos changed

The reason is the tag `why:…` that a run was started with; a run that nobody gave one is `scheduled` or `asked`. A run
passes its reason on to the runs it starts.
"""

from collections.abc import Sequence
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.runtime import flow_run as this_run

from tasks.prefect_api.runs import FORGET, subject_of

ASKED, SCHEDULED = "asked", "scheduled"
PHASE, SUBJECT, WHY = "phase:", "subject:", "why:"


def run_name(flow: str, subject: str, reasons: Sequence[str]) -> str:
    """Return the name of a run, such as `learn ada (photos changed)`; `subject` is "" where it is about everybody."""
    return " ".join(filter(None, [flow, subject, f"({', '.join(sorted(reasons))})"]))


def run_tags(flow: str, subject: str, reasons: Sequence[str]) -> list[str]:
    """Return the tags of a run, by which the UI filters."""
    return [f"{PHASE}{flow}", *([f"{SUBJECT}{subject}"] if subject else []), *(f"{WHY}{each}" for each in reasons)]


def why_tags() -> list[str]:
    """Return the tags with the reason of this run, for the runs that are parts of it."""
    return [tag for tag in this_run.tags if tag.startswith(WHY)]


def reasons_now() -> list[str]:
    """Return why this run runs; `asked` where nothing else is known."""
    return [tag.removeprefix(WHY) for tag in why_tags()] or [ASKED]


def name_this_run() -> str:
    """Return the name of the run that begins; for `flow_run_name` of a flow whose parameter is a spec."""
    context = FlowRunContext.get()
    assert context is not None and context.flow is not None and context.flow_run is not None
    run = context.flow_run
    return run_name(context.flow.name, subject_of(run), _reasons(run))


def tag_this_run(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tag a run that begins; for `on_running` of a flow.

    A run that forgets gets no tag with the subject: its name and its tags stay for a while in the server's events.
    """
    subject = "" if flow.name == FORGET else subject_of(flow_run)
    labels = run_tags(flow.name, subject, _reasons(flow_run))
    flow_run.tags = [*flow_run.tags, *(tag for tag in labels if tag not in flow_run.tags)]
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, tags=flow_run.tags)


def _reasons(run: FlowRun) -> list[str]:
    given = [tag.removeprefix(WHY) for tag in run.tags if tag.startswith(WHY)]
    return given or [SCHEDULED if run.auto_scheduled else ASKED]
