#!/bin/sh
# Prefect: applying the same automation again makes a proactive trigger forget what it waits for, so that nothing happens.
# An update gives the trigger a new id; the wait of the old one is dropped, also where the declaration is the same to the
# byte. Whoever applies automations at each start, as with deployments, loses the runs that were to be missed just then.
# A minute and a half; a server on a free port of this machine only.
set -eu
folder=$(mktemp -d)
server=
trap 'kill $server 2>/dev/null || true; wait; rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'prefect==3.9.1'
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
export DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false PREFECT_HOME="$folder/home"
venv/bin/prefect server start --host 127.0.0.1 --port "$port" > server.log 2>&1 &
server=$!
venv/bin/python - "http://127.0.0.1:$port/api" <<'EOF'
import datetime, sys, time, uuid
import httpx, prefect

api = sys.argv[1]
print("prefect", prefect.__version__)
for _ in range(240):
    try:
        if httpx.get(f"{api}/health").is_success:
            break
    except httpx.TransportError:
        time.sleep(0.5)

def asked(method, path, content=None):
    answer = httpx.request(method, api + path, json=content, timeout=60)
    answer.raise_for_status()
    return answer.json() if answer.content else None

declared = {
    "name": "lost",
    "enabled": True,
    "trigger": {
        "type": "event", "posture": "Proactive", "after": ["beat"], "expect": ["beat"],
        "for_each": ["prefect.resource.id"], "threshold": 1, "within": 15,
    },
    "actions": [{"type": "do-nothing"}],
}
made = asked("POST", "/automations/", declared)
time.sleep(3)

def beat(thing):
    now = datetime.datetime.now(datetime.UTC).isoformat()
    asked("POST", "/events", [{
        "id": str(uuid.uuid4()), "occurred": now, "event": "beat", "payload": {}, "related": [],
        "resource": {"prefect.resource.id": thing},
    }])

def fired():
    """The number of times that the automation acted."""
    found = asked("POST", "/events/filter", {"filter": {"event": {"name": ["prefect.automation.action.executed"]}}})
    return found["total"]

beat("thing.one")
time.sleep(40)
undisturbed = fired()
print("one beat, then silence: the automation acted", undisturbed, "time(s)")
before = asked("GET", f"/automations/{made['id']}")["trigger"]["id"]
beat("thing.two")
time.sleep(5)
asked("PUT", f"/automations/{made['id']}", declared)
after = asked("GET", f"/automations/{made['id']}")["trigger"]["id"]
time.sleep(40)
updated = fired() - undisturbed
print("one beat, the same declaration again, then silence:", updated, "time(s); trigger", before, "->", after)
sys.exit(0 if (undisturbed, updated) == (1, 0) and before != after else 1)
EOF
