#!/bin/sh
# CPython with torch, diffusers, transformers and peft: a process that only imports them takes more than a second to end after its last
# statement, since Python's last garbage collections search every object that is alive. gc.freeze() as that statement takes nine tenths
# of it away. Medians of five, beside each other.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'torch==2.13.0' 'numpy==2.4.6'
venv/bin/pip install -q 'diffusers==0.42.1' 'transformers==5.23.0' 'peft==0.21.2' 'accelerate==1.15.0'
cat > ends.py <<'EOF'
import gc, sys, time
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from transformers import Qwen3Model
import peft

if sys.argv[1] == "frozen":
    gc.freeze()
print(time.time(), flush=True)
EOF
cat > measure.py <<'EOF'
import statistics, subprocess, sys, time

def seconds(how):
    done = subprocess.run([sys.executable, "ends.py", how], capture_output=True, text=True, check=True)
    return time.time() - float(done.stdout)

seconds("plain")
found = {how: statistics.median(seconds(how) for _ in range(5)) for how in ("plain", "frozen")}
print(", ".join(f"{how} {value:.2f} s" for how, value in found.items()))
sys.exit(not found["plain"] > 2 * found["frozen"])
EOF
venv/bin/python -c 'import importlib.metadata as m, platform; print("Python", platform.python_version(), *(f"{n} {m.version(n)}" for n in ("torch", "diffusers", "transformers", "peft")))'
echo "from the last statement to the end of the process, median of five: $(venv/bin/python measure.py)"
