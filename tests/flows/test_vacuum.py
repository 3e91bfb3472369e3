"""What a server that lasts deletes by itself."""

import datetime
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import httpx

from flows.__main__ import LASTING, QUIET
from tasks.settings import PROJECT
from tests.flows.stack_parts import until
from tests.ports import free_port


def test_log_lines_that_arrived_after_their_run_was_deleted_go(tmp_path: Path) -> None:
    port = free_port()
    api = f"http://127.0.0.1:{port}/api"
    line = {
        "name": "prefect.flow_runs",
        "level": 20,
        "message": "learning ada",
        "timestamp": datetime.datetime.now(datetime.UTC).isoformat(),
        "flow_run_id": str(uuid4()),
    }
    once = {"PREFECT_SERVER_SERVICES_DB_VACUUM_ORPHAN_CLEANUP_LOOP_SECONDS": "1"}  # a day
    own = {"PREFECT_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, env={**QUIET, **LASTING, **once, **own}, stdout=log, stderr=log)
    try:
        until("the server", lambda: httpx.get(f"{api}/health").is_success, 120)

        httpx.post(f"{api}/logs/", json=[line]).raise_for_status()

        until("no line left", lambda: httpx.post(f"{api}/logs/filter", json={}).json() == [], 60)
    finally:
        server.terminate()
        server.wait()
