"""From which state a stopped run goes on: the furthest of those that lead to the LoRA the run promises.

States of two runs never lie in one folder. The folder in which the output is made has those of one run, and what was
fetched from another machine lies in a folder of its own until the run, which alone knows its identity, takes it over.
"""

import shutil
from pathlib import Path

from zimage.errors import InputError
from zimage.folder import fetched_beside
from zimage.training.checkpoint import State, read_states
from zimage.training.params import Resume


def take_over(aside: Path, *, run: str, device: str, resume: Resume) -> State | None:
    """Return the state to go on from, or None; its files are in `aside` then, and what was fetched is gone.

    Args:
        aside: The folder in which the output is made.
        run: The run's identity.
        device: What computes here, see `device_kind`.
        resume: What to do with states of another kind of device.

    Raises:
        InputError: there are states of this run, of other kinds of devices only, and `resume` is `exact`.
    """
    fetched = fetched_beside(aside)
    best: State | None = None
    place, refused = aside, None
    for folder in (aside, fetched):
        for state in read_states(folder / "resume", run=run):
            if resume != "any" and state.devices != (device,):
                refused = refused or state
                continue
            if best is None or state.step > best.step:
                best, place = state, folder
            break
    if best is None and refused is not None and resume == "exact":
        raise InputError(_refusal(refused, device))
    if place == fetched:
        shutil.rmtree(aside)
        fetched.rename(aside)
    shutil.rmtree(fetched, ignore_errors=True)
    return best


def _refusal(state: State, device: str) -> str:
    return (
        f"This training was stopped after step {state.step} on {' and '.join(state.devices)}; on {device} it would not "
        "end with the LoRA it would have ended with there: run it on such a device, or set train.resume to `any` to go "
        "on here all the same, or to `restart` to begin anew."
    )
