"""Command line of the flows: `python -m flows personalize …`; starts a server of its own if none is configured."""

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from flows import spec
from flows.server.temporary import EVENTS_KEPT, TemporaryServer
from tasks.settings import PROJECT, from_environment, inherited
from tasks.store.protocol import StoreError
from tasks.workspace.dvc import preloaded
from zimage.core.errors import InputError, printable
from zimage.core.process import collect_rarely, quiet_if_unread
from zimage.evaluation.report.summary import summary

SPECS: dict[str, type[spec.SubjectSpec]] = {
    "personalize": spec.PersonalizeSpec,
    "prepare": spec.PrepareSpec,
    "learn": spec.LearnSpec,
    "score": spec.ScoreSpec,
    "publish": spec.PublishSpec,
    "promote": spec.PromoteSpec,
    "fetch": spec.FetchSpec,
    "forget": spec.ForgetSpec,
}
STACK = {
    "serve": "Run a Prefect server, a worker for each pool, and all deployments, until Ctrl-C.",
    "deploy": "Apply pools, deployments and automations to the configured server.",
    "watch": "Look after lost runs of the configured server, until Ctrl-C; one for each server, `serve` has it.",
    "work": "Take runs of a pool of the configured server and do them on this machine, until Ctrl-C.",
}
REMOTE = ("work", "watch")  # commands that need a server which runs already
FLAGS = {"values": "--set", "loras": "--lora", "bases": "--base", "used_as": "--as"}
METAVARS = {  # of what is repeated
    "values": "SECTION.KEY=VALUE",
    "loras": "FILE[:STRENGTH]",
    "pictures": "FOLDER",
    "bases": "MODEL",
    "used_as": "USE",
}
STAGED = ("personalize", "prepare", "learn")  # flows that bring stages up to date
ALONE = {"publish": "pass"}  # what an option means that is given without a value
USER_ERROR = 2
# Log lines that repeat the sentence of a refusal: the stage's, DVC's, and Prefect's about a state; and about hooks,
# which name and tag runs.
REPEATED = re.compile(rf"zimage: |ERROR: failed to reproduce|.*exception:? {InputError.__name__}: |(Running h|H)ook '")
# What the pattern of a field allows, in words.
ALLOWED = {
    "subject": "2 to 41 small letters a-z, digits, - and _, the first a letter or a digit, such as ada-1",
    "release": "a number, - and 8 of the characters 0-9 and a-f, such as 3-0a1b2c3d, as `publish` printed it",
    "hub_repository": "owner/name, each of letters, digits, -, _ and ., the first a letter or a digit",
}
# No telemetry.
QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}

# A server that asks for a password locks out the clients of its own stack that do not send it.
SERVER_PASSWORD = "PREFECT_SERVER_API_AUTH_STRING"
CLIENT_PASSWORD = "PREFECT_API_AUTH_STRING"

HEARTBEAT = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"
# Of a server that lasts, and of its workers. Leases in files outlive a restart of the server, those in memory do not.
LASTING = {
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    **EVENTS_KEPT,
    # "orphans": log lines that arrived after a person had deleted their run, and that no list shows any more.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,orphans",
    HEARTBEAT: "30",  # tasks/policy.py, HEARTBEAT_S
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}
PORT = 4200


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one flow and return its exit code: 0, or 2 with one sentence on stderr if the user can correct the cause."""
    return quiet_if_unread(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    given = vars(_parser().parse_args(arguments))
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if password := os.environ.get(SERVER_PASSWORD):
        os.environ.setdefault(CLIENT_PASSWORD, password)
    name = given.pop("flow")
    if name in STACK:
        return _stack(name, **given)
    try:
        asked = _checked(SPECS[name], given)
        outcome = _fetched(asked) if isinstance(asked, spec.FetchSpec) else _run(name, asked)
    except (InputError, StoreError) as error:
        print(f"flows: {printable(str(error))}", file=sys.stderr)
        if isinstance(error, InputError) and error.names:
            print(f"flows: {printable(error.names)}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("flows: Stopped; what was finished is kept, and the next run goes on from there.", file=sys.stderr)
        return USER_ERROR
    print(*_told(name, asked, outcome), sep="\n")
    refusal = getattr(outcome, "refusal", None)
    if refusal:
        print(f"flows: {refusal}", file=sys.stderr)
    return USER_ERROR if refusal else 0


def _stack(name: str, **given: Any) -> int:
    """Run the stack or one of its workers, or apply its declarations; return the exit code."""
    for key, value in LASTING.items():
        os.environ.setdefault(key, value)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    if name in REMOTE and "PREFECT_API_URL" not in os.environ:
        print("flows: No server is configured; set PREFECT_API_URL, such as http://HOST:4200/api.", file=sys.stderr)
        return USER_ERROR
    match name:
        case "work":
            return _work(**given)
        case "watch":
            return _watch()
    return _served(name, **given)


def _watch() -> int:
    from flows.server.watch import main as watch

    try:
        watch()
    except KeyboardInterrupt:
        print("flows: Stopped.", file=sys.stderr)
    return 0


def _work(pool: str, limit: int | None, queue: list[str]) -> int:
    """Replace this process by a worker of the configured server."""
    from flows.server.stack import worker

    command = [sys.executable, "-m", "prefect", *worker(pool, limit=limit, queues=queue)]
    os.execve(command[0], command, inherited())  # its signals reach it with nothing between


def _served(name: str, *, port: int = PORT) -> int:
    """Run the stack, or apply its declarations; return the exit code."""
    webhook = os.environ.pop("ZIMAGE_NOTIFY", "")  # a secret that no worker needs
    if name == "serve":
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        origins = f"http://127.0.0.1:{port},http://localhost:{port}"  # of the UI
        os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", origins)
        os.environ.setdefault("PREFECT_SERVER_CSRF_PROTECTION_ENABLED", "true")
    from flows.server.stack import deploy, serve

    try:
        if name == "deploy":
            deploy(notify=bool(webhook))
        else:
            serve(from_environment(), port=port, webhook=webhook)
    except InputError as error:
        print(f"flows: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("flows: Stopped.", file=sys.stderr)
    return 0


def _fetched(asked: spec.FetchSpec) -> list[str]:
    """Fetch the release of a channel and return the closing lines; reading a store needs no Prefect run."""
    from tasks.release.channels import fetch_current
    from tasks.store.s3 import open_store

    settings = from_environment()
    folder = Path(asked.out or f"{asked.subject}-{asked.channel}").expanduser().absolute()
    workspace = settings.workspace(asked.subject)
    key = Path(asked.key).expanduser() if asked.key else None
    release = fetch_current(
        open_store(settings.store), asked.subject, asked.channel, folder, workspace=workspace, key=key
    )
    manifest = release.manifest
    return [
        f"release  {manifest.release} of {asked.channel}, {manifest.verdict}, in {folder}",
        f"LoRA     {folder / manifest.lora} at strength {manifest.strength:g}; USAGE.txt beside it tells how to use it",
        f"prompt   write {manifest.trigger!r} where the person stands",
        f"signed   {_signed(release, key)}",
    ]


def _signed(release: Any, key: Path | None) -> str:
    """Return the line about the signature of a fetched release."""
    if key:
        return f"with the key of {key}"
    if release.signature is None:
        return "no: nobody knows whether it is what was published"
    return "yes, and not checked: --key PUBLIC checks it with the publisher's public key"


def _run(name: str, asked: spec.SubjectSpec) -> Any:
    """Run the flow on the configured server, or on a temporary one, and return its result.

    Raises:
        InputError: it is refused, before a run exists if that can be known by then.
    """
    os.environ.setdefault(HEARTBEAT, LASTING[HEARTBEAT])  # of a server that lasts, which takes silence for a death
    server = None if "PREFECT_API_URL" in os.environ else TemporaryServer.of_process()
    collect_rarely()
    with preloaded() if name in STAGED else nullcontext():
        from prefect.settings import (
            PREFECT_API_URL,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            PREFECT_UI_URL,
            temporary_settings,
        )

        from flows.preflight import refuse, warnings_of

        served = server is None or bool(PREFECT_API_URL.value())  # a profile may name one
        settings = from_environment()
        refuse(asked, settings, served=served)
        for warning in warnings_of(asked, settings):
            print(f"flows: {printable(warning)}", file=sys.stderr)
        if getattr(asked, "approval", False):
            return _start(name, asked)
        _tell_refusals_once()
        flow = getattr(importlib.import_module(f"flows.{name}"), name)
        if served:
            return flow(asked)
        import fastapi  # noqa: F401 - Prefect wants it for a flow's first parameters; now, the server is still loading

        assert server is not None
        server.wait()
        # It has no UI to point to. Heartbeats tell a server that outlives this process of its death, and joining their
        # thread takes a second per flow.
        own = {PREFECT_API_URL: server.api, PREFECT_UI_URL: "", PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        with temporary_settings(own):
            return flow(asked)


def _start(name: str, asked: spec.SubjectSpec) -> Any:
    """Create a run of the flow's deployment, for a worker: this process could not wait for days; return it."""
    from prefect.deployments import run_deployment
    from prefect.exceptions import ObjectNotFound

    from tasks.prefect_api.run_labels import ASKED, run_name, run_tags

    try:
        return run_deployment(
            f"{name}/{name}",
            parameters={"spec": asked.model_dump(mode="json")},
            timeout=0,
            flow_run_name=run_name(name, asked.subject, [ASKED]),
            tags=run_tags(name, asked.subject, [ASKED]),
        )
    except ObjectNotFound:
        raise InputError(
            f"This Prefect server has no deployment `{name}/{name}`; `python -m flows deploy` makes them."
        ) from None


def _tell_refusals_once() -> None:
    """Hide the traceback that Prefect logs for a refusal in each enclosing run; the sentence is printed at the end."""
    from prefect.logging.configuration import ensure_logging_setup
    from prefect.logging.handlers import PrefectConsoleHandler

    ensure_logging_setup()
    logging.setLogRecordFactory(_without_traceback_of_refusals)
    known = [logging.getLogger(), *(logging.getLogger(each) for each in logging.root.manager.loggerDict)]
    handlers = {id(handler): handler for logger in known for handler in logger.handlers}
    for handler in handlers.values():
        if isinstance(handler, PrefectConsoleHandler):
            handler.addFilter(_is_no_refusal)


def _without_traceback_of_refusals(*arguments: Any, **options: Any) -> logging.LogRecord:
    """Return a log record that holds the sentence of a refusal instead of its traceback."""
    record = logging.LogRecord(*arguments, **options)
    if record.exc_info and isinstance(record.exc_info[1], InputError):
        record.exc_info = None
        record.is_refusal = True
    return record


def _is_no_refusal(record: logging.LogRecord) -> bool:
    return not getattr(record, "is_refusal", False) and not REPEATED.match(record.getMessage())


def _told(name: str, asked: spec.SubjectSpec, outcome: Any) -> list[str]:
    """Return the closing lines: the outcome of each stage, and the places of the results."""
    workspace = from_environment().workspace(asked.subject)
    match outcome:
        case _ if getattr(asked, "approval", False):
            return [f"run      {outcome.name} waits for a worker, then for a person in Prefect's UI"]
        case dict():
            return [_stages(outcome), *(summary(workspace) if name == "learn" else [])]
        case _ if name == "score":
            return [*outcome.says, f"page     {outcome.page}", f"results  {outcome.key} in {from_environment().store}"]
        case _ if name == "promote":
            return [f"channel  {outcome.release} ({outcome.kind} at {outcome.at:%Y-%m-%d %H:%M} UTC)"]
        case _ if name == "forget":
            return _listed(outcome)
        case list():
            return outcome
        case _ if name == "personalize":
            return [_stages(outcome.outcomes), *summary(workspace), *_released(outcome.release)]
        case _:
            return _released(outcome)


def _stages(outcomes: Mapping[str, str]) -> str:
    if set(outcomes.values()) == {"unchanged"}:
        return "Everything was up to date; nothing was run."
    return "stages   " + ", ".join(f"{stage} {outcome}" for stage, outcome in outcomes.items())


def _released(release: Any) -> list[str]:
    if release is None:
        return []
    state = "new" if release.is_new else "had been published before"
    notice = [f"note     {release.notice}"] if release.notice else []
    hub = [f"hub      {release.hub}, with the tag {release.name}"] if release.hub else []
    return [f"release  {release.key} in {from_environment().store} ({state})", *hub, *notice]


def _listed(listing: Any) -> list[str]:
    """Return the lines about what exists of a subject, or was deleted, and the next step."""
    if listing.unreached is not None:
        return ["Deleted, and a second look found nothing of the photo:", *listing.lines, *listing.unreached]
    if listing.tombstone is None:
        return [*listing.lines, "Nothing was deleted; `--delete` deletes all of it."]
    return ["Deleted, and a second listing was empty:", *listing.lines]


def _checked(kind: type[spec.SubjectSpec], given: dict[str, Any]) -> spec.SubjectSpec:
    try:
        return kind(**given)
    except ValidationError as error:
        raise InputError(f"{'; '.join(map(_fault, error.errors()))}.") from None


def _fault(fault: Mapping[str, Any]) -> str:
    field = str(fault["loc"][0])
    said = f"allowed are {ALLOWED[field]}" if fault["type"] == "string_pattern_mismatch" else fault["msg"]
    return f"{_flag(field)} {fault['input']!r}: {said}"


def _flag(field: str) -> str:
    return FLAGS.get(field, f"--{field.replace('_', '-')}")


def _parser() -> argparse.ArgumentParser:
    """Return a parser with one command per flow and one option per field of its spec."""
    parser = argparse.ArgumentParser(prog="python -m flows", description="Run a flow on this machine.")
    commands = parser.add_subparsers(dest="flow", metavar="FLOW", required=True)
    for name, kind in SPECS.items():
        about = kind.__doc__ or ""
        command = commands.add_parser(name, help=about, description=about, argument_default=argparse.SUPPRESS)
        for field, info in kind.model_fields.items():
            _add_option(command, field, info)
    for name, about in STACK.items():
        command = commands.add_parser(name, help=about, description=about)
        if name == "work":
            command.add_argument("pool", choices=["cpu", "gpu"], help="the work pool that it takes runs from")
            command.add_argument("--limit", type=int, metavar="RUNS", help="at a time; 1 for a GPU")
            command.add_argument(
                "--queue", action="append", default=[], metavar="NAME",
                help="take the runs of this queue of the pool only; may be given more than once",
            )  # fmt: skip
            continue
        if name == "watch":
            continue
        if name == "serve":
            command.add_argument(
                "--port", type=int, default=PORT, help="of the server; it answers to this machine only"
            )
    return parser


def _add_option(command: argparse.ArgumentParser, field: str, info: FieldInfo) -> None:
    flag = _flag(field)
    kind, text = info.annotation, info.description or info.title
    if kind is bool:
        command.add_argument(flag, dest=field, action="store_true", help=text)
    elif get_origin(kind) is Literal:
        alone: dict[str, Any] = {"nargs": "?", "const": ALONE[field]} if field in ALONE else {}
        choices = [choice for choice in get_args(kind) if choice]
        command.add_argument(flag, dest=field, choices=choices, help=text, **alone)
    elif get_origin(kind) is list:
        command.add_argument(flag, dest=field, action="append", metavar=METAVARS[field], help=text)
    else:
        command.add_argument(flag, dest=field, required=info.is_required(), help=text)


if __name__ == "__main__":
    sys.exit(main())
