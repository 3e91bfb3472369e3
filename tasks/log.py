"""Write to the log of the flow run: output of DVC and stages, and photo names that run states must not contain."""

import time

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.logging import get_run_logger

from zimage.core.errors import InputError, printable

NAMES = "Names for the refusal: "  # begins the line that has them; `forget` deletes it with the run
COME_WITHIN_S = 5.0  # a run sends its log every 2 s (PREFECT_LOGGING_TO_API_BATCH_INTERVAL)
LOOK_EVERY_S = 0.5


def log_line(line: str) -> None:
    """Write a line into the run's log."""
    get_run_logger().info("%s", printable(line))


def log_names(refusal: InputError) -> None:
    """Log the photo names of a refusal: the run's state, events and webhooks must not contain them."""
    if refusal.names:
        get_run_logger().warning("%s%s", NAMES, printable(refusal.names))


def names_in_log(run: FlowRun) -> str:
    """Return the photo names that a refused run has logged; "" if none arrived in time."""
    of = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    until = time.monotonic() + COME_WITHIN_S
    with get_client(sync_client=True) as client:
        while True:
            offset = 0
            while page := client.read_logs(log_filter=of, offset=offset, limit=200):
                for each in page:
                    if each.message.startswith(NAMES):
                        return each.message.removeprefix(NAMES)
                offset += len(page)
            if time.monotonic() > until:
                return ""
            time.sleep(LOOK_EVERY_S)
