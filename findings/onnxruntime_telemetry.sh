#!/bin/sh
# ONNX Runtime: since 1.32 its builds for Linux have Microsoft's telemetry, on by default. Seconds after
# `import onnxruntime` the process connects to mobile.events.data.microsoft.com and keeps an id of the device and a queue of
# events, with the path of the executable, below ~/.cache/Microsoft. Neither DO_NOT_TRACK=1 nor
# `onnxruntime.disable_telemetry_events()` after the import, the documented switch, keeps it from connecting;
# ORT_DISABLE_TELEMETRY=1 before the import does.
# About two minutes; all connections are caught by a proxy on this machine, which refuses them.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'onnxruntime==1.32.0' 'onnx==1.23.2'
cat > use.py <<'EOP'
import sys, time
import onnxruntime
from onnx import TensorProto, helper

if "disable" in sys.argv:
    onnxruntime.disable_telemetry_events()
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
session.run(None, {"x": [1.0]})
time.sleep(30)
EOP
venv/bin/python - <<'EOP'
import importlib.metadata, os, socket, subprocess, sys, tempfile, threading
from pathlib import Path

def connections(*arguments, **environment):
    """What a process that uses ONNX Runtime for 30 s asks the proxy for, and the files that it leaves below its home."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as home:
        def listen():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    asked.append(connection.recv(200).split(b"\r\n")[0].decode())
        threading.Thread(target=listen, daemon=True).start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), proxy)
        bare = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
        subprocess.run([sys.executable, "use.py", *arguments], env={**bare, **proxies, "HOME": home, **environment}, check=True)
        left = sorted(path.name for path in Path(home).rglob("*") if path.is_file())
        server.shutdown(socket.SHUT_RDWR)
    return sorted(set(asked)), left

print("onnxruntime", importlib.metadata.version("onnxruntime"))
seen = {
    "as installed": connections(),
    "DO_NOT_TRACK=1": connections(DO_NOT_TRACK="1"),
    "disable_telemetry_events()": connections("disable"),
    "ORT_DISABLE_TELEMETRY=1": connections(ORT_DISABLE_TELEMETRY="1"),
}
for how, (asked, left) in seen.items():
    print(f"{how}: asked for {asked}, left {left}")
sends = [bool(asked) for asked, _ in seen.values()]
sys.exit(0 if sends == [True, True, True, False] else 1)
EOP
