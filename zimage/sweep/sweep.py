"""Train one dataset with several settings and seeds, score every LoRA, and compare the settings."""

import hashlib
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage.consent import read_consent
from zimage.core.errors import InputError
from zimage.core.fingerprint import fingerprint
from zimage.core.folder import make_writable, write_whole
from zimage.core.jsonl import write_metrics
from zimage.core.params import with_values
from zimage.core.section import read_params, read_section
from zimage.evaluation.rows import read_tested, write_csv
from zimage.model.base import identify_files
from zimage.permission import require_for, today
from zimage.stages.evaluate import EvaluateParams
from zimage.sweep.comparison import Run, compared, table
from zimage.sweep.settings import read_sweep
from zimage.training.params import TrainParams

logger = logging.getLogger(__name__)

READ_BY = {"train": ("encode",), "evaluate": ("detect", "caption")}  # the data that each stage reads
CANNOT_BE_USED = 2  # exit code of a stage that refuses its input, such as a training whose loss left all bounds


@dataclass(frozen=True)
class _Planned:
    """A training that is to be made.

    Args:
        setting: The name of its settings.
        seed: `train.seed`.
        params: The whole params.yaml.
        folder: Gets params.yaml, train/, evaluate/ and done.json, which says what the two were made of.
    """

    setting: str
    seed: int
    params: str
    folder: Path


def sweep(file: Path, out: Path, *, data: Path, params_file: Path) -> list[str]:
    """Write runs/, sweep.md, sweep.json and differences.csv, and return the table's lines.

    Trainings run one after the other. What an earlier call finished is not made again unless its settings, data or
    code changed; a training that was stopped goes on. A setting that cannot be trained is named, and the others go on.

    Args:
        file: See `SweepFile`.
        out: A new folder, or one of an earlier call.
        data: A workspace's data: consent.yaml, detect/, caption/ and encode/.
        params_file: The settings that `file` changes.

    Raises:
        InputError: see `read_sweep`; a value does not exist or is wrong, data are missing, the consent does not cover
            training, or nothing could be trained.
    """
    settings, seeds = read_sweep(file)
    require_for(["train", "evaluate"], read_consent(data / "consent.yaml"), today())
    text = params_file.read_text(encoding="utf-8")
    planned = [
        _Planned(
            name,
            seed,
            with_values(text, {**values, "train.seed": seed}, f"{file}, `{name}`"),
            out / "runs" / f"{name} seed {seed}",
        )
        for seed in seeds
        for name, values in settings.items()
    ]
    made_of = _made_of(data)
    make_writable(out)
    for one in planned:  # all are checked before the first is trained, which takes long
        one.folder.mkdir(parents=True, exist_ok=True)
        write_whole(one.folder / "params.yaml", one.params.encode())
        for section, kind in (("train", TrainParams), ("evaluate", EvaluateParams)):
            read_section(one.folder / "params.yaml", section, kind)
    evaluated = read_section(planned[0].folder / "params.yaml", "evaluate", EvaluateParams)  # alike in all
    runs: dict[str, list[Run]] = {}
    failed: list[str] = []
    lines: list[str] = []
    for number, one in enumerate(planned, 1):
        logger.info("%d of %d: %s, seed %d", number, len(planned), one.setting, one.seed)
        if _make(one, out, data, made_of):
            runs.setdefault(one.setting, []).append(_run(one))
        else:
            failed.append(f"{one.setting}, seed {one.seed}")
        if runs:  # a long sweep can be read while it runs
            ordered = {name: runs[name] for name in settings if name in runs}
            lines = _write(out, settings, ordered, failed, evaluated.copy_correlation)
    if not runs:
        raise InputError("No setting could be trained; see above why, and change them.")
    return lines


def _made_of(data: Path) -> dict[str, str]:
    """Return what each stage is made of besides its settings: its data and its code."""
    found = {}
    for stage, folders in READ_BY.items():
        parts = [fingerprint(f"zimage.stages.{stage}")]
        for name in folders:
            files = [path for path in (data / name).rglob("*") if path.is_file()]
            if not files:
                raise InputError(f"{data / name} is empty or missing; run `dvc repro` first, or name --data.")
            parts.append(identify_files(files, data / name))
        found[stage] = "\n".join(parts)
    return found


def _make(one: _Planned, out: Path, data: Path, made_of: Mapping[str, str]) -> bool:
    """Train and score one LoRA, as far as that is not done yet; return whether it could be trained."""
    record = one.folder / "done.json"
    done: dict[str, str] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    before = ""
    for stage, read in READ_BY.items():
        sections = _sections(one.folder / "params.yaml", stage)
        key = before = hashlib.sha256(f"{before}\n{made_of[stage]}\n{sections}".encode()).hexdigest()
        if done.get(stage) == key and (one.folder / stage).is_dir():
            continue
        # Scores are made in one place for all runs, so that the base's pictures beside it are made once.
        made = one.folder / stage if stage == "train" else out / "scored"
        inputs = [data / name for name in read] + ([one.folder / "train"] if stage == "evaluate" else [])
        if not _stage(stage, inputs, made, one.folder / "params.yaml"):
            return False
        if stage == "evaluate":
            _replace(made, one.folder / stage)
        done[stage] = key
        write_whole(record, json.dumps(done, indent=2).encode())
    return True


def _sections(params: Path, stage: str) -> str:
    content = read_params(params)
    return json.dumps({name: content.get(name) for name in ("base", "subject", stage)}, sort_keys=True, default=str)


def _stage(stage: str, inputs: Sequence[Path], out: Path, params: Path) -> bool:
    """Run a stage as a process of its own; return whether it could use what it was given."""
    command = [sys.executable, "-m", "zimage", stage, *map(str, inputs), str(out), "--params", str(params)]
    with subprocess.Popen(command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.terminate()  # it cleans up after itself; a training goes on from there
            process.wait()
            raise
    if code not in (0, CANNOT_BE_USED):
        raise InputError(f"The stage {stage} failed (exit code {code}); see above, and run the sweep again.")
    return code == 0


def _replace(made: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)


def _run(one: _Planned) -> Run:
    trained = json.loads((one.folder / "train" / "metrics.json").read_text(encoding="utf-8"))
    rows = read_tested(one.folder / "evaluate" / "scores.csv")
    return Run(one.seed, rows, float(trained["steps"]) / float(trained["steps_per_s"]))


def _write(
    out: Path,
    settings: Mapping[str, Mapping[str, Any]],
    runs: Mapping[str, Sequence[Run]],
    failed: Sequence[str],
    copy_correlation: float,
) -> list[str]:
    """Write what is known so far, and return the table's lines."""
    found = compared(runs, copy_correlation=copy_correlation)
    lines = table(found, failed=failed)
    write_whole(out / "sweep.md", ("\n".join(lines) + "\n").encode())
    write_csv(out / "differences.csv", found.differences)
    write_metrics(
        out / "sweep.json",
        {
            "settings": settings,
            "results": {name: one.as_json() for name, one in found.results.items()},
            "differences": [one.model_dump() for one in found.differences],
        },
    )
    return lines
