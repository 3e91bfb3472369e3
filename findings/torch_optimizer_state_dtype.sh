#!/bin/sh
# torch: an optimiser that keeps its state in another precision than the parameters does not come back from its own
# state_dict: `Optimizer.load_state_dict` casts every floating tensor of the state (all but `step`) to the parameter's dtype.
# prodigy-plus-schedule-free keeps running sums in bfloat16 beside float32 parameters; after a save and a load they are
# float32, are then rounded no more, and the training goes on with other numbers than without the interruption.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'torch==2.13.0' 'numpy==2.4.6' 'prodigy-plus-schedule-free==2.0.1'
venv/bin/python - <<'EOF' 2>&1 | grep -v "Warning:"
import copy, importlib.metadata, sys
import torch
from prodigyplus import ProdigyPlusScheduleFree

print("torch", torch.__version__, "prodigy-plus-schedule-free", importlib.metadata.version("prodigy-plus-schedule-free"))

def begun(values):
    weight = torch.nn.Parameter(values.clone())
    return weight, ProdigyPlusScheduleFree([weight])

def steps(weight, optimiser, numbers):
    for number in numbers:
        torch.manual_seed(number)
        weight.grad = weight.detach() - torch.randn_like(weight)
        optimiser.step()

def dtypes(optimiser, weight):
    return {name: str(value.dtype) for name, value in optimiser.state[weight].items() if torch.is_tensor(value)}

torch.manual_seed(0)
start = torch.randn(64, 64)
whole, optimiser = begun(start)
optimiser.train()
steps(whole, optimiser, range(20))
saved, values = copy.deepcopy(optimiser.state_dict()), whole.detach().clone()
before = dtypes(optimiser, whole)
resumed, again = begun(values)
again.train()
again.load_state_dict(saved)
after = dtypes(again, resumed)
other = {name: (before[name], after[name]) for name in before if before[name] != after.get(name)}
print("state of another dtype after loading:", other)
steps(whole, optimiser, range(20, 60))
steps(resumed, again, range(20, 60))
apart = float((whole - resumed).abs().max())
print(f"largest difference of a parameter after 40 further steps: {apart:.2e}")
sys.exit(0 if other and all(old == "torch.bfloat16" for old, _ in other.values()) and apart > 0 else 1)
EOF
