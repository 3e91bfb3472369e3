#!/bin/sh
# Prefect: deleting an artifact does not delete its content. Creating an artifact that has a key writes an event with the
# whole content; deleting the newest of a key writes one more, with the content of the artifact that was there before it,
# which may be months old. A PATCH on the REST interface, unlike the client's own update, writes none.
# About a minute; a server on a free port of this machine only.
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
import json, sys, time
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

def events_with(text):
    """The names of the events that hold a text, oldest first, once writing them has had time."""
    time.sleep(8)
    found = asked("POST", "/events/filter", {"filter": {"order": "ASC"}})["events"]
    return [event["event"] for event in found if text in json.dumps(event)]

def artifact(data):
    return asked("POST", "/artifacts/", {"key": "report", "type": "markdown", "data": data})["id"]

first = artifact("the first secret")
second = artifact("the second secret")
made = events_with("secret")
print("two artifacts of one key were made; events that hold their content:", made)
asked("PATCH", f"/artifacts/{second}", {"data": "the patched secret"})
patched = events_with("patched secret")
print("one was changed by PATCH; events with the new content:", patched)
before = events_with("the first secret")
asked("DELETE", f"/artifacts/{second}")
after = events_with("the first secret")
print("the newest was deleted; events with the content of the one before it:", before, "->", after)
asked("DELETE", f"/artifacts/{first}")
left = events_with("secret")
print("no artifact is left; events with their content:", len(left))
sys.exit(0 if len(made) == 2 and not patched and len(after) > len(before) and len(left) >= 3 else 1)
EOF
