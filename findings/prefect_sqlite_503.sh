#!/bin/sh
# Prefect on SQLite: a request that reads before it writes is answered with 503 "Service Unavailable" within a second when
# another connection commits between its first read and its first write, although Prefect sets SQLite's busy_timeout to
# 60 s. Its transactions begin DEFERRED, so the read takes a snapshot, and SQLite refuses at once to write from an old
# one: it waits for locks only. Requests that begin with their write wait as expected. The server's own services are such
# other connections. Prefect's clients try again after a 503; curl, httpx and other programs do not.
# About a minute; a server on a free port of this machine only.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'prefect==3.9.1'
export DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_HOME="$folder"
cat > look.py <<'EOF'
import os, socket, sqlite3, subprocess, sys, threading, time
from collections import Counter
import httpx, prefect

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
api = f"http://127.0.0.1:{port}/api"
command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
with open("server.log", "w") as log:
    server = subprocess.Popen(command, stdout=log, stderr=log)
done = threading.Event()

def write():
    """Commit a small transaction of 4 ms every 6 ms, to a table of its own."""
    database = sqlite3.connect("prefect.db", timeout=60, isolation_level=None)
    database.execute("create table if not exists notes (n)")
    while not done.is_set():
        database.execute("begin immediate")
        database.execute("insert into notes values (1)")
        time.sleep(0.004)
        database.execute("commit")
        time.sleep(0.002)

try:
    for _ in range(240):
        try:
            if httpx.get(f"{api}/health").is_success:
                break
        except httpx.TransportError:
            time.sleep(0.5)
    flow = httpx.post(f"{api}/flows/", json={"name": "learn"}, timeout=90).json()["id"]
    writer = threading.Thread(target=write)
    writer.start()
    found, longest = {}, 0.0
    for path, content in (("/flows/", {}), ("/deployments/", {"flow_id": flow})):
        found[path] = Counter()
        for number in range(30):
            begun = time.monotonic()
            answer = httpx.post(api + path, json={"name": f"learn-{number}", **content}, timeout=90)
            found[path][answer.status_code] += 1
            if answer.status_code == 503:
                longest = max(longest, time.monotonic() - begun)
    done.set()
    writer.join()
finally:
    done.set()
    server.terminate()
    server.wait()
print("prefect", prefect.__version__, "- SQLite", sqlite3.sqlite_version)
for path, answers in found.items():
    print("POST", path, dict(answers))
print(f"the slowest 503 took {longest:.1f} s of the 60 s that SQLite may wait for a lock")
sys.exit(0 if found["/deployments/"][503] and longest < 20 else 1)
EOF
venv/bin/python look.py
