"""The command line. The stages' commands are derived from their signatures; nothing heavy is imported for `--help`.

The only place where `zimage` reads the environment:
    ZIMAGE_PROGRESS: a file to which the start of a stage that DVC runs, progress, and the message of a failure are
        appended as JSON lines. The process that sets it reads them, and ends DVC itself when this process ends.
    DVC_STAGE: set by DVC for what it starts.
    ZIMAGE_PROCESSES: how many processes of one thread share a stage's work on a CPU; as many as it has cores if unset.
    ZIMAGE_MACHINE: values of this machine for the section `machine` of params.yaml, as `KEY=VALUE KEY=VALUE`.
    TRACKIO_DIR: where the tracker Trackio has its store; set to a part of `machine.tracking_folder` if unset.
"""

import argparse
import contextlib
import errno
import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zimage.cli import base, lora
from zimage.core.errors import InputError, printable
from zimage.core.process import collect_rarely, quiet_if_unread
from zimage.core.signatures import STAGES, Signature, imported, signature
from zimage.dedistillation import command as dedistilling
from zimage.migration import migrate
from zimage.scoring import command as scoring
from zimage.sweep import command as sweeping

if TYPE_CHECKING:
    import datetime

    from zimage.cli.doctor import Finding

USER_ERROR = 2
CONSENT_DAYS = 365  # that a consent holds unless the document says otherwise
DISK_FULL = "No space left on device"  # the words of strerror(ENOSPC), also in what Rust and C++ writers raise


@dataclass(frozen=True)
class Subcommand:
    """A subcommand.

    Args:
        name: How it is called.
        summary: One line for `zimage --help`.
        configure: Adds its arguments to its parser.
        run: Does it, with the parsed arguments, and returns the exit code.
    """

    name: str
    summary: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code: 0, or 2 for an error of the user, which is printed on stderr."""
    return quiet_if_unread(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parsed = _parser(_commands()).parse_args(arguments)
    followed = os.environ.get("ZIMAGE_PROGRESS")
    _begin(followed)
    try:
        code: int = parsed.run(parsed)
        sys.stdout.flush()  # flush here, so that a full disk is reported as such
        return code
    except BaseException as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"zimage: {printable(sentence)}", file=sys.stderr, flush=True)
        names = error.names if isinstance(error, InputError) else ""
        if names:
            print(f"zimage: {printable(names)}", file=sys.stderr, flush=True)
        if followed:
            _report(followed, {"error": sentence, "names": names})
        return USER_ERROR


def _commands() -> list[Subcommand]:
    return [_stage_command(signature(stage)) for stage in STAGES] + [
        Subcommand("consent", "Write a subject's consent file from the document they signed.", _add_consent, _consent),
        Subcommand("sample-now", "Ask a running training for its LoRA and pictures.", _add_train, _sample_now),
        Subcommand("summary", "Show the results of the last run, and where they are.", _add_workspace, _summary),
        Subcommand("demo", "Make the demo subject's photos.", _add_photos, _demo),
        Subcommand("doctor", "Show what is installed, what is missing, and the remedy for each.", _add_params, _doctor),
        Subcommand("pin", "Write a base model and what identifies it into params.yaml.", _add_model, _pin),
        Subcommand("fingerprints", "Write code.yaml, which makes stages stale.", _add_output, _fingerprints),
    ]


def _stage_command(stage: Signature) -> Subcommand:
    def configure(parser: argparse.ArgumentParser) -> None:
        *inputs, output = stage.folders
        for name in inputs:
            parser.add_argument(name, type=Path, help="an input folder or file")
        parser.add_argument(output, type=Path, help="the output folder; it is created or replaced as a whole")
        _add_params(parser)

    def run(parsed: argparse.Namespace) -> int:
        run_stage(stage, [getattr(parsed, name) for name in stage.folders], parsed.params_file)
        return 0

    return Subcommand(stage.stage, stage.summary, configure, run)


def run_stage(stage: Signature, folders: list[Path], params_file: Path) -> None:
    """Check params.yaml for this and all later stages, so that no mistake is found only hours later; call the stage.

    The consent file in the output's parent folder, as in a workspace, is checked too: `dvc repro` skips an unchanged
    `ingest`, but a consent that has expired since must stop every stage that still has to run.
    """
    from zimage.core.process_group import use_processes

    present = _check_later(stage, params_file)
    use_processes(_processes())
    _check_consent(stage.stage, folders[-1].parent / "consent.yaml")
    function, kinds = imported(stage)
    sections = {
        keyword: _section(present, params_file, name, kinds[keyword]) for keyword, name in stage.sections.items()
    }
    if "machine" in sections:  # which Trackio reads nowhere else
        folder = Path(sections["machine"].tracking_folder).expanduser() / "trackio"
        os.environ.setdefault("TRACKIO_DIR", str(folder))
    function(*folders, **sections)


def _section(present: Mapping[str, Any], params_file: Path, name: str, kind: type[Any]) -> Any:
    """Return a section of params.yaml, which holds `present`, with this machine's values in the section `machine`."""
    from zimage.core.params import parsed
    from zimage.core.section import checked, section_of

    section = section_of(present, name, kind, params_file)
    given = os.environ.get("ZIMAGE_MACHINE", "")
    if name != "machine" or not given:
        return section
    try:
        values = parsed(given.split())
    except InputError:
        raise InputError(
            f"ZIMAGE_MACHINE is `{given}`; set it to KEY=VALUE with a space between two, such as "
            "`checkpointing=full offloaded_blocks=15`, or unset it."
        ) from None
    return checked({**section.model_dump(), **values}, kind, "ZIMAGE_MACHINE")


def _refuse_old_keys(params: Mapping[str, Any], params_file: Path) -> None:
    """Pass if a params.yaml has no key under the name that it had in 0.1.

    Raises:
        InputError: it has; every such key is named with its new name.
    """
    from zimage.core.renamed_keys import old_keys

    if old := old_keys(params):
        names = ", ".join(f"`{key}` is `{new}`" for key, new in old.items())
        raise InputError(f"{params_file} has names of version 0.1: {names} now; rename them there.")


def _processes() -> int:
    """Return how many processes may share the CPU; a container with a part of it can set ZIMAGE_PROCESSES."""
    from zimage.photos.worker_pool import cores

    given = os.environ.get("ZIMAGE_PROCESSES") or str(cores())
    if not given.isdecimal() or int(given) == 0:
        raise InputError(f"ZIMAGE_PROCESSES is `{given}`; set it to a number of processes from 1 on, or unset it.")
    return int(given)


def _check_later(stage: Signature, params_file: Path) -> Mapping[str, Any]:
    """Return what params.yaml holds, once the sections of the stage and of all later ones were checked."""
    from zimage.core.section import read_params, refuse_unknown

    present = read_params(params_file)
    _refuse_old_keys(present, params_file)
    known = {name for each in STAGES for name in signature(each).sections.values()}
    refuse_unknown(present, known, str(params_file))
    for later in map(signature, STAGES[STAGES.index(stage.stage) :]):
        _, kinds = imported(later)
        for keyword, name in later.sections.items():
            if name in present:
                _section(present, params_file, name, kinds[keyword])
    return present


def _check_consent(stage: str, path: Path) -> None:
    from zimage.consent import read_consent
    from zimage.permission import require_for, today

    if path.is_file():  # a machine of a pool has none: there the phase has asked what was handed over
        require_for([stage], read_consent(path), today())


def _summary(parsed: argparse.Namespace) -> int:
    from zimage.evaluation.report.summary import summary

    print(*summary(parsed.workspace), sep="\n")
    return 0


def _sample_now(parsed: argparse.Namespace) -> int:
    from zimage.training.demand import demand

    print(f"The training writes them into {demand(parsed.train)} after the step that it is at, and goes on.")
    return 0


def _demo(parsed: argparse.Namespace) -> int:
    from zimage.core.folder import check_earlier, made_aside
    from zimage.demo import LAST, make_demo_photos

    check_earlier(parsed.photos, [LAST])
    with made_aside(parsed.photos) as folder:
        make_demo_photos(folder, seed=parsed.seed)
    return 0


def _doctor(parsed: argparse.Namespace) -> int:
    from zimage.cli.doctor import as_lines, examine
    from zimage.core.section import read_params
    from zimage.training.params import MachineParams

    def machine() -> MachineParams:
        path = parsed.params_file
        found: MachineParams = _section(read_params(path), path, "machine", MachineParams)
        return found

    findings = [
        *examine(parsed.params_file, prefect_api_url=os.environ.get("PREFECT_API_URL"), machine=machine),
        _params(parsed.params_file),
        *_store(),
    ]
    print(*as_lines(findings), sep="\n")
    return USER_ERROR if any(finding.state == "missing" for finding in findings) else 0


def _store() -> "list[Finding]":
    """Return the findings about the store if the pipeline is installed too; `zimage` itself opens no store."""
    if importlib.util.find_spec("tasks") is None:
        return []
    found: list[Finding] = importlib.import_module("tasks.doctor").examine_environment()
    return found


def _params(params_file: Path) -> "Finding":
    """Return whether every stage can read its section."""
    from zimage.cli.doctor import Finding

    try:
        _check_later(signature(STAGES[0]), params_file)
    except InputError as error:
        return Finding("settings", "missing", "not usable", str(error))
    return Finding("settings", "present", str(params_file))


def _consent(parsed: argparse.Namespace) -> int:
    import datetime

    from zimage.consent import consent_text
    from zimage.core.folder import refuse_existing, write_whole
    from zimage.permission import today

    out = parsed.out or Path(f"consent-{parsed.subject}.yaml")
    refuse_existing(out, force=parsed.force)
    expires = parsed.expires or today() + datetime.timedelta(days=CONSENT_DAYS)
    text = consent_text(
        parsed.subject,
        parsed.document,
        adult=parsed.adult,
        may_publish=parsed.may_publish,
        expires=expires,
        description=parsed.description,
    )
    write_whole(out, text.encode())
    use = "training, evaluation and publication" if parsed.may_publish else "training and evaluation"
    print(f"{out}: {parsed.subject} agreed to {use} until {expires}; check it against the document.")
    if not parsed.adult:
        print("It does not say that the person is of age: set `adult: true` there once they have affirmed it.")
    return 0


def _pin(parsed: argparse.Namespace) -> int:
    from zimage.core.folder import write_whole
    from zimage.core.params import with_values
    from zimage.core.section import read_params
    from zimage.model.base import identify

    read_params(parsed.params_file)
    values = {"base.model": parsed.model, "base.identity": identify(parsed.model)}
    text = with_values(parsed.params_file.read_text(encoding="utf-8"), values, "zimage pin")
    write_whole(parsed.params_file, text.encode())
    print(f"{parsed.params_file}: base.model is {parsed.model}, base.identity is {values['base.identity']}")
    return 0


def _fingerprints(parsed: argparse.Namespace) -> int:
    from zimage.core.fingerprint import as_yaml, fingerprints
    from zimage.core.folder import write_whole

    write_whole(parsed.output, as_yaml(fingerprints()).encode())
    return 0


def _add_params(parser: argparse.ArgumentParser) -> None:
    default = Path("params.yaml")
    parser.add_argument(
        "--params", dest="params_file", type=Path, default=default, metavar="FILE", help=f"else {default}"
    )


def _day(text: str) -> "datetime.date":
    import datetime

    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"`{text}` is no day; write it as YYYY-MM-DD") from None


def _add_consent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subject", required=True, help="a pseudonym of small letters, digits, - and _")
    parser.add_argument("--document", type=Path, required=True, help="what the person signed; only its hash is stored")
    parser.add_argument("--adult", action="store_true", help="the person affirmed to be of age; nothing is done before")
    parser.add_argument("--may-publish", action="store_true", help="the person agreed to publication")
    parser.add_argument("--expires", type=_day, metavar="YYYY-MM-DD", help="the last day; else in a year")
    parser.add_argument(
        "--description", default="signed release", metavar="TEXT", help="what was signed, without names"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="else consent-SUBJECT.yaml")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")


def _add_workspace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workspace", type=Path, nargs="?", default=Path(), help="else this folder")


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "train", type=Path, nargs="?", default=Path("data/train"), help="the folder that it writes; else data/train"
    )


def _add_photos(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, help="the output folder; it is created or replaced as a whole")
    parser.add_argument("--seed", type=int, required=True, help="of all that varies between the views")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="`tiny`, a folder in diffusers' layout, or a hub id that is in the local cache")
    _add_params(parser)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("output", type=Path, nargs="?", default=Path("code.yaml"), help="else code.yaml")


def _parser(commands: Sequence[Subcommand]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zimage", description="Photos of a person in, a Z-Image face-identity LoRA and a truthful score of it out."
    )
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        subparser = subparsers.add_parser(command.name, help=command.summary, description=command.summary)
        command.configure(subparser)
        subparser.set_defaults(run=command.run)
    base.register(subparsers)
    dedistilling.register(subparsers)
    lora.register(subparsers)
    migrate.register(subparsers)
    scoring.register(subparsers)
    sweeping.register(subparsers)
    return parser


def _begin(followed: str | None) -> None:
    """Set up the process: logging, offline libraries, signal handlers, end with the parent, progress file."""
    from zimage.core.process import end_with_job

    collect_rarely()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("zimage").setLevel(logging.INFO)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
    # These do not go by DO_NOT_TRACK=1.
    os.environ |= {"ORT_DISABLE_TELEMETRY": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait slow down a busy machine
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    end_with_job(only_starter=bool(followed), started_by_dvc="DVC_STAGE" in os.environ)
    if followed:
        from zimage.core.progress import follow_in

        follow_in(Path(followed))
        if stage := os.environ.get("DVC_STAGE"):
            _report(followed, {"stage": stage})


def _stop(*_: object) -> None:
    """Stop once: a second signal (the terminal and the parent both send one) must not interrupt the cleanup."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _sentence(error: BaseException) -> str | None:
    """Return the message for the user, or None for an error of the program, which keeps its traceback."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "Stopped; nothing half done was left, and the next run goes on from what was finished."
    if _is_disk_full(error):
        return "The disk is full; free some space and run again: what was finished is kept."
    if type(error).__name__ == "OutOfMemoryError":
        return f"The GPU's memory is too small for these settings ({error}); choose a preset for less memory."
    return None


def _is_disk_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or DISK_FULL in str(error)


def _report(followed: str, event: dict[str, str]) -> None:
    """Append an event to the progress file."""
    with contextlib.suppress(OSError), Path(followed).open("a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")


if __name__ == "__main__":
    sys.exit(main())
