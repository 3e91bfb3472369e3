#!/bin/sh
# torch on a CPU: asking a bfloat16 tensor whether all of it is finite takes several times as long by torch.isfinite as by
# its least and its largest value, which are finite only if all values are. Ratios of medians in one process.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'torch==2.13.0' 'numpy==2.4.6'
venv/bin/python - <<'EOF'
import statistics, sys, time
import torch

torch.set_num_threads(1)
weights = torch.randn(4096, 4096).bfloat16()

def by_isfinite():
    return bool(torch.isfinite(weights).all())

def by_extremes():
    least, largest = torch.aminmax(weights)
    return bool(torch.isfinite(torch.stack((least, largest))).all())

def median_s(work):
    taken = []
    for _ in range(9):
        begun = time.perf_counter()
        assert work() is True
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)

print("torch", torch.__version__)
by_isfinite(), by_extremes()
ratio = median_s(by_isfinite) / median_s(by_extremes)
for bad in (float("nan"), float("inf"), float("-inf")):
    weights[1, 1] = bad
    assert not by_isfinite() and not by_extremes()
    weights[1, 1] = 0.0
print(f"isfinite takes {ratio:.1f} times as long as aminmax; both see NaN and both infinities")
sys.exit(0 if ratio > 1.5 else 1)
EOF
