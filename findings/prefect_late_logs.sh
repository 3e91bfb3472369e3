#!/bin/sh
# Prefect: deleting a run deletes its logs once, a moment later. Lines of the run that arrive after that are accepted and
# stay, although the run is gone; clients send lines in batches, up to two seconds late. With its defaults the server never
# deletes them: the sweep of orphaned logs is off unless PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED names `orphans`.
# About two minutes; servers on free ports of this machine only.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'prefect==3.9.1'
export DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false
cat > look.py <<'EOF'
import datetime, os, socket, subprocess, sys, time
import httpx, prefect

def asked(api, method, path, content=None):
    answer = httpx.request(method, api + path, json=content, timeout=60)
    answer.raise_for_status()
    return answer.json() if answer.content else None

def left(name, within_s, **settings):
    """How many of a deleted run's lines a server with these settings still has: those from before, and a late one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "PREFECT_HOME": os.path.abspath(name), **settings}
    with open(f"{name}.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(240):
            try:
                if httpx.get(f"{api}/health").is_success:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        flow = asked(api, "POST", "/flows/", {"name": "learn"})["id"]
        run = asked(api, "POST", "/flow_runs/", {"flow_id": flow, "state": {"type": "COMPLETED"}})["id"]
        line = {"name": "prefect.flow_runs", "level": 20, "message": "a line", "flow_run_id": run,
                "timestamp": datetime.datetime.now(datetime.UTC).isoformat()}
        def lines():
            return len(asked(api, "POST", "/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}}))
        asked(api, "POST", "/logs/", [line])
        asked(api, "DELETE", f"/flow_runs/{run}")
        until = time.monotonic() + 60
        while lines() and time.monotonic() < until:
            time.sleep(0.5)
        before = lines()
        asked(api, "POST", "/logs/", [line])
        until = time.monotonic() + within_s
        while lines() and time.monotonic() < until:
            time.sleep(0.5)
        return before, lines()
    finally:
        server.terminate()
        server.wait()

print("prefect", prefect.__version__)
before, late = left("defaults", 40)
print("defaults: lines sent before the run was deleted:", before, "- a line sent after that:", late)
_, swept = left("orphans", 40, PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED="events,orphans",
                PREFECT_SERVER_SERVICES_DB_VACUUM_ORPHAN_CLEANUP_LOOP_SECONDS="1")
print("with the sweep of orphans, each second instead of each day: a line sent after that:", swept)
sys.exit(0 if (before, late, swept) == (0, 1, 0) else 1)
EOF
venv/bin/python look.py
