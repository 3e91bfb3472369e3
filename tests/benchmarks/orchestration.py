"""What Prefect costs: the demo's photos through `dvc repro` and through `personalize`, side by side in one run.

Run with: python -m tests.benchmarks.orchestration [number of pairs]
Each side starts with an empty workspace of its own, which holds the demo's photos, consent and parameters; the order
changes from pair to pair. Then both are asked again where nothing changed. About six minutes a pair on two cores.
"""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tasks.settings import PROJECT, Settings
from tasks.workspace.subject import CLASS_NOUN, set_up
from tests.agreed import agreed
from zimage.demo import make_demo_photos

PRESET = "tiny"
AGAIN = 5


def run(folder: Path, workspaces: Path, *command: str) -> float:
    """Run a command of this environment in `folder` and return its seconds of wall time."""
    workspaces.mkdir(parents=True, exist_ok=True)  # Prefect makes its home, and no folder above it
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ZIMAGE_WORKSPACES": str(workspaces),
        "PREFECT_HOME": str(workspaces / ".prefect"),
        "DVC_NO_ANALYTICS": "1",
    }
    began = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def repro(workspaces: Path, photos: Path, subject: str) -> float:
    """Return the seconds of `dvc repro` in the subject's workspace, which is made first where it is not there."""
    settings = Settings(project=PROJECT, workspaces=workspaces, store=str(workspaces / "store"))
    if not settings.workspace(subject).exists():
        consent = str(agreed(workspaces, subject))
        set_up(settings, subject, photos=str(photos), consent=consent, preset=PRESET, values={CLASS_NOUN: "woman"})
    return run(settings.workspace(subject), workspaces, "dvc", "repro", "--quiet")


def personalize(workspaces: Path, photos: Path, subject: str) -> float:
    """Return the seconds of the flow, with a server of its own."""
    consent = agreed(workspaces, subject)
    options = ["--subject", subject, "--photos", str(photos), "--consent", str(consent), "--preset", PRESET]
    options += ["--class-noun", "woman", "--set", "detect.duplicates.same_shot=null"]  # views of one portrait
    return run(PROJECT, workspaces, sys.executable, "-m", "flows", "personalize", *options)


def main(pairs: int) -> None:
    """Print the seconds of each pair, of asking again, and what the flow takes more."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    sides = {"dvc repro": repro, "personalize": personalize}
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        photos = Path(temporary) / "photos"
        make_demo_photos(photos, seed=0)
        for pair in range(pairs):
            order = list(sides) if pair % 2 == 0 else list(reversed(sides))
            took = {name: sides[name](Path(temporary) / name / str(pair), photos, "ada") for name in order}
            ratios.append(took["personalize"] / took["dvc repro"])
            print(*(f"{name} {took[name]:.1f} s" for name in sides), f"{100 * (ratios[-1] - 1):.1f} % more", sep=", ")
        for name, side in sides.items():
            again = sorted(side(Path(temporary) / name / "0", photos, "ada") for _ in range(AGAIN))
            print(f"{name} where nothing changed: {', '.join(f'{each:.1f}' for each in again)} s")
    print(f"median: {100 * (statistics.median(ratios) - 1):.1f} % more, of {pairs}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
