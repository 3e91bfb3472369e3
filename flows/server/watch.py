"""Run the watch for lost runs: `python -m flows watch`, one process for each server."""

import logging
import sys
import time

LOOK_EVERY_S = 5.0


def main() -> None:
    """Look after lost runs of the configured server until this process ends; what was done goes to standard error."""
    from tasks.policy import LOST_AFTER_S, PENDING_S
    from tasks.prefect_api.lost import Silence, Watch
    from tasks.settings import silence_limits

    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("tasks.prefect_api.lost").setLevel(logging.INFO)
    watch = Watch(Silence(*silence_limits(LOST_AFTER_S, PENDING_S["process"])))
    while True:
        watch.look()
        time.sleep(LOOK_EVERY_S)
