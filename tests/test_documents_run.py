"""Every command of the README and the guide runs, in their order, in a copy of the project with the documented names.

What a command finds (photos, a signed document, LoRA files) is made before. What is too large is replaced by STAND_INS;
what cannot run here is in NOT_RUN with the reason. A command that is in neither and fails, fails this test.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tasks.settings import PROJECT
from tests.evaluation.suites import WITH_A_SECOND_PERSON
from tests.faces.tiny_pack import write_pack
from tests.lora.dialect_files import Factors, write_dialect
from tests.lora.family_files import FILES, write_header
from tests.tiny_base import write_tiny_base
from zimage.demo import make_demo_photos

pytestmark = pytest.mark.timeout(1500)

DOCUMENTS = (PROJECT / "README.md", PROJECT / "infra" / "guide.md")
FENCE = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
# Of a command in a sentence: it is whole, and nothing in it stands for something else, as FILE does.
PROGRAMS = re.compile(r"zimage \S+ \S|python -m \S|dvc \S|hf \S|make \S|torchrun \S")
PLACEHOLDER = re.compile(r"\b[A-Z]{3,}\b")
NUM_PHOTOS = 16

MIGRATE = (
    'zimage migrate ada-sdxl.safetensors migrated --old-base sdxl --person "ohwx woman" --class-noun woman '
    "--consent consent-ada.yaml"
)
UNTIL_CTRL_C = "runs until Ctrl-C beside a server; tests/flows/server/test_stack.py runs such a stack"
NOT_RUN = {
    "make demo": "`.ci/run` runs it on a clean checkout, and tests/test_demo.py looks at what it makes",
    "make test": "`.ci/run` runs it on a clean checkout; this is a part of it",
    "make serve": "its port is that of the machine's own server; tests/flows/test_serve.py runs it on a free one",
    "make install": "what `make demo` begins with",
    "dvc repro": "what `make demo` runs",
    "make audit": "asks a service on the network; tests/test_audit.py",
    "hf download Tongyi-MAI/Z-Image": "21 GB from the real hub",
    "python -m flows work gpu --limit 1": UNTIL_CTRL_C,
    "python -m flows watch": UNTIL_CTRL_C,
    "python -m tests.benchmarks.lora families": "a measurement; tests/lora/files/test_inspection.py asserts it",
    "python -m tests.benchmarks.lora matrix": "a measurement; tests/lora/test_matrix.py asserts what it prints",
    MIGRATE: "needs a trained SDXL: a random one draws no face; tests/migration/test_migrate.py hands in faces",
}
# In place of what is large: the base model, steps, sizes. All else is as it stands.
SMALL = {
    "train.steps": 2,
    "train.checkpoint_every": 2,
    "train.batch_size": 2,  # which two processes can share
    "train.micro_batch_size": 1,
    "train.rank": 2,
    "train.samples": "null",
    "train.memory.compile": "false",  # takes minutes of a compiler
    "train.schedule.warmup_steps": 1,
    "ingest.min_photos": 6,
    "detect.quality.min_image_px": 160,  # as the photos of the demo are
    "detect.split.min_train": 4,
    "detect.duplicates.same_shot": "null",
    "detect.crops.side_px": 64,
    "evaluate.suite": "$PWD/suite.yaml",
    "evaluate.sampling.side_px": 64,
    "evaluate.sampling.guidance_scale": "0.0",
    "evaluate.sampling.steps": 1,
    "evaluate.seeds.base": 1,
    "evaluate.seeds.selection": 1,
    "evaluate.seeds.test": 1,
    "evaluate.seeds.leaks": 1,
    "evaluate.sweep.checkpoints": 0,
    "evaluate.sweep.strengths": "[1.0]",
    "evaluate.resampling.resamples": 200,
    # A LoRA of two steps passes no gate, and the sections about releases need one that does.
    **{
        f"evaluate.gate.{rule}": "null"
        for rule in (
            *("face_found_rate_min", "same_person_rate_min", "same_person_rate_low_min"),
            *("gain_low_min", "copy_rate_max", "nearest_share_max", "second_engine_rate_min"),
        )
    },
}
STAND_INS = {
    "Tongyi-MAI/Z-Image": "base",  # a Z-Image of the real classes with tiny random weights, in a folder
    "--class-noun woman": " ".join(["--class-noun woman", *(f'--set "{key}={value}"' for key, value in SMALL.items())]),
    "--steps 3000": "--steps 3",
    # A pack of some kilobytes sees a face in every picture and cannot tell people apart.
    "--engine buffalo_l": "--engine buffalo_l --set detect.engine.max_distance=2.0",
}
# What the sentences before a command say that was done: here, what a publisher with that key did.
BEFORE = {
    "python -m flows fetch --subject ada --channel production --key public.pem": (
        "ZIMAGE_C2PA_CERTIFICATES=certificates.pem ZIMAGE_C2PA_KEY=key.pem "
        "python -m flows publish --subject ada --accept-provisional",
        "python -m flows promote --subject ada --channel production --accept-provisional",
    ),
}
CODES = {
    "zimage inspect ada-sdxl.safetensors": 2,  # what the verdict `unusable` ends with
    "zimage sample-now workspaces/ada/data/train": 2,  # no training runs then; tests/training/test_demand.py asks one
}
SAYS = {  # what a command that goes on until Ctrl-C prints once it works
    "tensorboard --logdir workspaces/ada/data/train": "http://",
}
SAYS_WITHIN_S = 300.0


@dataclass(frozen=True)
class Command:
    """A command of a document."""

    document: str
    text: str

    def in_small(self) -> str:
        """The command as it is run: with what stands in for what is large."""
        text = " && ".join([*BEFORE.get(self.text, ()), self.text])
        for large, small in STAND_INS.items():
            text = text.replace(large, small)
        return text


def commands() -> Iterator[Command]:
    """All commands of the documents in their order; those in a sentence where they are whole."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        found = [(match.start(1), line.strip()) for match in FENCE.finditer(text) for line in match[1].splitlines()]
        found += [
            (match.start(1), match[1])
            for match in INLINE.finditer(FENCE.sub(lambda block: " " * len(block[0]), text))
            if PROGRAMS.match(match[1]) and not PLACEHOLDER.search(match[1].replace("Z-Image", ""))
        ]
        seen: set[str] = set()
        for _, line in sorted(found, key=lambda each: each[0]):
            if line and not (line in seen and line in NOT_RUN):
                seen.add(line)
                yield Command(document.name, line)


@dataclass(frozen=True)
class Place:
    """A copy of the project, and what commands find there and at home."""

    folder: Path
    environment: dict[str, str]

    def run(self, command: Command) -> tuple[int, str]:
        """Run a command as a shell does, and return its exit code and what it printed."""
        with subprocess.Popen(
            ["bash", "-c", command.in_small()],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,  # not a session of its own, which would take no part in giving way (tests/conftest.py)
        ) as process:
            assert process.stdout is not None
            says, said = SAYS.get(command.text), ""
            if says is None:
                said = process.communicate()[0]
                return process.returncode, said
            until = time.monotonic() + SAYS_WITHIN_S
            for line in process.stdout:
                said += line
                if says in line or time.monotonic() > until:
                    break
            os.killpg(process.pid, signal.SIGINT)
            process.communicate()
            return (0 if says in said else 1), said


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("documents") / "project"
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(lambda name: (PROJECT / name).is_file(), files.stdout.splitlines()):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, folder / name)
    environment = folder / ".venv"
    environment.symlink_to(sys.prefix)
    home = folder.parent / "home"
    home.mkdir()
    _provide(folder, home)
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "ZIMAGE_", "AWS_"))}
    return Place(
        folder,
        ours
        | {
            "HOME": str(home),
            "PATH": os.pathsep.join([str(environment / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": str(folder),  # before the project that is installed
            "OMP_NUM_THREADS": "1",
            "DVC_NO_ANALYTICS": "1",
            "HF_HUB_OFFLINE": "1",
        },
    )


def _provide(folder: Path, home: Path) -> None:
    """Make what the documents take for granted: photos, the signed document, a base, a face pack, other LoRAs."""
    make_demo_photos(folder / "photos", seed=1)
    for superfluous in sorted((folder / "photos").glob("IMG_1*.jpg"))[NUM_PHOTOS:]:
        superfluous.unlink()
    (folder / "release.pdf").write_bytes(b"%PDF-1.4 signed\n")
    (folder / "suite.yaml").write_text(WITH_A_SECOND_PERSON, encoding="utf-8")
    write_tiny_base(folder / "base")
    write_pack(home / ".insightface" / "models" / "buffalo_l", central=True)
    write_header(folder / "ada-sdxl.safetensors", FILES["SDXL, kohya"][1]())
    for name, dialect in {"musubi": "kohya-split", "style": "portable"}.items():
        write_dialect(folder / f"{name}.safetensors", dialect, _attention(), 1.0)


def _attention() -> dict[str, Factors]:
    """Factors of rank 2 for the attention of one layer of the real Z-Image."""
    width, random = 3840, torch.Generator().manual_seed(1)
    return {
        f"layers.0.attention.{name}": Factors(
            torch.randn(2, width, generator=random), torch.randn(width, 2, generator=random)
        )
        for name in ("to_q", "to_k", "to_v", "to_out.0")
    }


def test_what_is_not_run_is_named_with_a_reason_and_stands_in_a_document() -> None:
    texts = {each.text for each in commands()}

    assert set(NOT_RUN) <= texts
    assert set(BEFORE) | set(CODES) | set(SAYS) <= texts
    assert all(any(large in text for text in texts) for large in STAND_INS)
    assert len(texts - set(NOT_RUN)) > 20


def test_every_command_of_the_documents_runs_in_their_order(place: Place) -> None:
    failed = []
    for command in commands():
        if command.text in NOT_RUN:
            continue
        begun = time.monotonic()
        code, said = place.run(command)
        print(f"{time.monotonic() - begun:6.1f} s  {command.document}: {command.text}")
        if code != CODES.get(command.text, 0) or "Running hook" in said:  # of Prefect, nothing for a person at a shell
            failed.append(f"{command.document}: {command.in_small()}\nended with {code}:\n{said[-3000:]}")

    assert failed == [], "\n\n".join(failed)
    for result in (
        "workspaces/ada/data/evaluate/report.html",
        "workspaces/ada/data/train/lora.safetensors",
        "ada-staging/manifest.json",
        "small.safetensors",
    ):
        assert (place.folder / result).is_file(), result
