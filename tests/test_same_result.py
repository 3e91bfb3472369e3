"""The tool behind `make same-result`, on a small pipeline of its own in a real git repository."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "same_result.py"
# Writes what the real stages write of each kind; its LoRA names the code, which differs between any two versions.
CODE = """
import hashlib, json, pathlib, struct, sys, time
VERSION, LOSS, NOTE, RANK = "{version}", {loss}, "{note}", "{rank}"
stage, out = sys.argv[1], pathlib.Path(sys.argv[2])
(out / "tensorboard").mkdir(parents=True)
if stage == "train":
    header = json.dumps({"__metadata__": {"zimage.code": VERSION, "zimage.rank": RANK}}).encode()
    (out / "lora.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"tensors")
    (out / "loss.csv").write_text("".join(["step,loss\\n", *(f"{n + 1},{LOSS / (n + 1):.6g}\\n" for n in range(3))]))
    (out / "metrics.json").write_text(json.dumps({"steps": 3, "steps_per_s": time.time(), "note": NOTE}))
    (out / "tensorboard" / f"events.{time.time_ns()}").write_text(str(time.time()))
if stage == "evaluate":
    lora = pathlib.Path("data/train/lora.safetensors").read_bytes()
    (out / "report.html").write_text(f"<p>{hashlib.sha256(lora).hexdigest()}\\n")
"""
STAGES = """
stages:
  train: {cmd: python -m zimage train data/train, outs: [data/train]}
  evaluate: {cmd: python -m zimage evaluate data/evaluate, outs: [data/evaluate]}
"""
SAME = {"version": "one", "loss": "0.5", "note": "x", "rank": "4"}


def write(folder: Path, **values: str) -> None:
    code = CODE
    for name, value in (SAME | values).items():
        code = code.replace(f"{{{name}}}", value)
    (folder / "zimage" / "__main__.py").write_text(code)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in {"zimage/__init__.py": "", "data/dvc.yaml": "stages: {}\n", "dvc.yaml": STAGES}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    write(tmp_path)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    return tmp_path


def compared(project: Path, base: str = "HEAD") -> tuple[int, str, str]:
    done = subprocess.run([sys.executable, str(SCRIPT), base], cwd=project, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def test_times_and_the_name_of_the_code_are_no_difference(project: Path) -> None:
    write(project, version="two")
    (project / "zimage" / "new.py").write_text("raise SystemExit(1)  # is in the tree, and nothing imports it")

    code, said, _ = compared(project)

    assert code == 0
    assert "loss: the same in all 3 steps\nAll 4 output files are the same.\n" in said


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"loss": "0.25"}, "loss: differs in 3 of 3 steps, first in step 1 (0.5 became 0.25), by 0.25 at most\n"),
        ({"loss": "0.25"}, "data/train/loss.csv  from line 2 on\n1 of 4 output files differ.\n"),
        ({"note": "y"}, "data/train/metrics.json  values of note\n1 of 4 output files differ.\n"),
        ({"rank": "8"}, "2 of 4 output files differ.\n"),  # the LoRA, and the report that names its hash
    ],
)
def test_any_other_difference_is_one(changed: dict[str, str], says: str, project: Path) -> None:
    write(project, version="two", **changed)

    code, said, _ = compared(project)

    assert code == 1
    assert says in said


def test_a_file_that_only_one_of_both_writes_is_a_difference(project: Path) -> None:
    with (project / "zimage" / "__main__.py").open("a") as file:
        file.write("(out / 'more').write_text('x')\n")

    code, said, _ = compared(project)

    assert code == 1
    assert "data/evaluate/more  only in the working tree\ndata/train/more     only in the working tree\n" in said


def test_what_could_not_be_run_was_not_compared(project: Path) -> None:
    assert compared(project, "no-such-commit")[::2] == (
        2,
        "NOT COMPARED: There is no commit `no-such-commit` here (fatal: not a valid object name: no-such-commit); "
        "give one with BASE=<commit>.\n",
    )
    write(project, loss="1 / 0")
    code, _, said = compared(project)
    assert code == 2
    assert "NOT COMPARED: `-m zimage train data/train` failed in " in said and "ZeroDivisionError" in said
