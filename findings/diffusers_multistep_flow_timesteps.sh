#!/bin/sh
# diffusers 0.42.1: for flow models DPMSolverMultistepScheduler and UniPCMultistepScheduler cut the timesteps that the
# model is asked at to whole numbers, but walk the sigmas uncut, so each answer belongs to another noise level, by up to
# 0.001. FlowMatchEulerDiscreteScheduler does not cut them. ZImagePipeline passes sigmas and mu to any scheduler: UniPC
# takes sigmas only as an array (a list raises), and DPM++ takes none and walks its own, which begin at 0.9997, not at 1.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'diffusers==0.42.1' 'torch==2.13.0' 'numpy==2.4.6' 'scipy==1.17.0' transformers
venv/bin/python - <<'EOF'
import inspect
import sys

import numpy as np
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

STEPS, SHIFT = 8, 3.0
sigmas = np.linspace(1.0, 1 / STEPS, STEPS)
flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": SHIFT}
euler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
euler.set_timesteps(sigmas=sigmas.tolist())
unipc = UniPCMultistepScheduler(**flow)
try:
    unipc.set_timesteps(sigmas=sigmas.tolist())
    list_taken = True
except TypeError as error:
    print("UniPC, a list of sigmas:", error)
    list_taken = False
unipc.set_timesteps(sigmas=sigmas)
dpm = DPMSolverMultistepScheduler(**flow)
dpm.set_timesteps(STEPS)
off = {}
for scheduler in (euler, unipc, dpm):
    name = type(scheduler).__name__
    off[name] = float(np.abs(np.array(scheduler.timesteps, float) - 1000 * np.array(scheduler.sigmas[:-1], float)).max())
    print(f"{name}: timesteps {scheduler.timesteps.dtype}, up to {off[name]:.3f} from 1000 sigma, "
          f"first sigma {float(scheduler.sigmas[0]):.6f}")
as_seen = (
    off["FlowMatchEulerDiscreteScheduler"] < 0.01
    and off["UniPCMultistepScheduler"] > 0.5
    and off["DPMSolverMultistepScheduler"] > 0.5
    and float(dpm.sigmas[0]) < 0.9999
    and not list_taken
    and "sigmas" not in inspect.signature(dpm.set_timesteps).parameters
)
sys.exit(0 if as_seen else "this has changed")
EOF
