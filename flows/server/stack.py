"""Run the whole stack on one machine: database, Prefect server, work pools, workers, deployments and automations.

The database is PostgreSQL from a package, unless PREFECT_SERVER_DATABASE_CONNECTION_URL names another one; the server
is Prefect's own and answers to this machine only. Everything started here ends with it, however it ends.
"""

import contextlib
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from flows.server.database import Database, lasting_database, only_server
from flows.server.processes import LOOK_EVERY_S, PREFECT, child, end, started
from tasks.policy import PHASES
from tasks.settings import PROJECT, Settings, personalize_at_once
from tasks.store.pages import served
from zimage.core.errors import InputError

HOST = "127.0.0.1"
STARTS_WITHIN_S = 120.0
ENDING = (signal.SIGTERM, signal.SIGHUP)  # of `kill` and of systemd; of a terminal that is closed
DEPLOYMENTS = PROJECT / "infra" / "prefect.yaml"
AUTOMATIONS = PROJECT / "infra" / "automations.yaml"
EXECUTED = {"command", "working_dir", "env"}  # fields of a job that decide what a worker executes
NOTIFY = "notify"  # stands for the webhook in automations.yaml
WEBHOOK = "ZIMAGE_NOTIFY"  # a variable of the server's environment: the webhook's address
RETIRED = ("zimage-lost-worker", "zimage-go-on")  # automations of earlier versions, whose work the watch does


def serve(settings: Settings, *, port: int, webhook: str) -> None:
    """Run the stack until this process is interrupted, or asked to end, or a part of it ends.

    Args:
        settings: Where workspaces and store are; the workers get it through their environment.
        port: Of the server; pages of a store in a folder are served at the next one.
        webhook: Address of a webhook that gets notifications, or ""; a secret, which only the server gets.

    Raises:
        InputError: a server runs on this PREFECT_HOME already, the port, or the next one, for pages, is in use, or a
            part did not start or ended by itself.
        KeyboardInterrupt: the process was interrupted, or asked to end; by now all of it has ended.
    """
    logs = settings.logs
    with ended_as_by_ctrl_c(), ExitStack() as stack:
        stack.enter_context(only_server(f"at http://{HOST}:{port}"))
        _refuse_port_in_use(port)
        pages = _served(stack, settings, port + 1)
        database = stack.enter_context(lasting_database(logs / "postgres.log"))
        command = ["server", "--host", HOST, "--port", str(port)]
        secret = {WEBHOOK: webhook} if webhook else {}
        parts = {"postgres": database.process} if database.process else {}
        parts["server"] = stack.enter_context(started(command, logs / "server.log", database.environment | secret))
        _wait_for_server(parts["server"], port, logs)
        deploy(notify=bool(webhook))
        parts["watch"] = stack.enter_context(started(["watch"], logs / "watch.log"))
        for name, command, environment in _workers():
            variables = {**environment, **({"ZIMAGE_PAGES": pages} if pages else {})}
            parts[name] = stack.enter_context(started(command, logs / f"{name}.log", variables))
        # All at once, or one would take up what another leaves.
        stack.callback(end, *(part.pid for name, part in parts.items() if name not in {"postgres", "server"}))
        _tell(settings, port, list(parts), pages, database)
        _wait_for_end(parts, logs)


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Let a signal that asks this process to end raise KeyboardInterrupt in the block, once: what follows tidies up.

    A signal that is ignored, as `nohup` has it, stays so.
    """
    before = {each: signal.getsignal(each) for each in ENDING}

    def interrupt(*_: object) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for each, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def deploy(*, notify: bool) -> None:
    """Apply work pools, deployments and automations to the configured server; applying again changes nothing.

    Args:
        notify: See `automations`.

    Raises:
        InputError: Prefect refused a deployment; its own words stand above.
    """
    for pool in sorted({phase.pool for phase in PHASES.values()}):
        make_pool(pool)
    _make_queue("cpu", "personalize", personalize_at_once())
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", suffix=".yaml") as file:
        yaml.safe_dump(_declared_deployments(), file)
        file.flush()
        command = ["--no-prompt", "deploy", "--prefect-file", file.name, "--all"]
        answer = subprocess.run(child(PREFECT, command), cwd=PROJECT, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise InputError(f"The deployments could not be applied:\n{answer.stdout}{answer.stderr}")
    apply_automations(notify=notify)


def apply_automations(*, notify: bool) -> None:
    """Make the declared automations, update those that differ, and delete those that only earlier versions had.

    Args:
        notify: See `automations`.
    """
    for automation in automations(notify=notify):
        _make_automation(automation)
    _delete_automations(RETIRED)


def _declared_deployments() -> dict[str, Any]:
    """Return infra/prefect.yaml without the schedules of deployments that the server has already.

    A schedule in the file replaces all schedules of its deployment, slug or not: the one that a person switched on is
    off again, and those added in the UI are gone. A file without `schedules` leaves them all as they are.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    declared: dict[str, Any] = yaml.safe_load(DEPLOYMENTS.read_text(encoding="utf-8"))
    with get_client(sync_client=True) as client:
        for each in declared["deployments"]:
            with contextlib.suppress(ObjectNotFound):
                client.read_deployment_by_name(f"{each['name']}/{each['name']}")
                each.pop("schedules", None)
    return declared


def automations(*, notify: bool) -> list[dict[str, Any]]:
    """Return what infra/automations.yaml declares, with the webhook in it; without one, all that need none.

    Args:
        notify: The server has ZIMAGE_NOTIFY in its environment, the address of a webhook.
    """
    declared: list[dict[str, Any]] = yaml.safe_load(AUTOMATIONS.read_text(encoding="utf-8"))
    if not notify:
        return [each for each in declared if not any(_notifies(action) for action in each["actions"])]
    block = _make_webhook()
    for action in [action for each in declared for action in each["actions"] if _notifies(action)]:
        action["block_document_id"] = block
    return declared


def _served(stack: ExitStack, settings: Settings, port: int) -> str:
    """Serve the pages of a store in a folder until the stack ends, and return where; "" for a bucket, which does it."""
    if settings.pages or "://" in settings.store:
        return settings.pages
    return stack.enter_context(served(Path(settings.store), port))


def _workers() -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Yield name, command and environment of each worker: one for the CPU phases, and one for each GPU alone.

    Where there is no GPU, one worker stands in and computes on the CPU.
    """
    host = platform.node()
    yield "cpu", worker("cpu", name=f"cpu on {host}"), {}
    gpus = _gpus()
    for gpu in gpus:
        yield f"gpu {gpu}", worker("gpu", name=f"gpu {gpu} on {host}", limit=1), {"CUDA_VISIBLE_DEVICES": gpu}
    if not gpus:
        yield "gpu", worker("gpu", name=f"gpu (none) on {host}", limit=1), {}


def worker(pool: str, *, name: str = "", limit: int | None = None, queues: Sequence[str] = ()) -> list[str]:
    """Return Prefect's command for a worker of a pool of this stack's kind.

    Args:
        pool: The work pool that it takes runs from.
        name: Its name; "" for one of Prefect's.
        limit: How many runs it takes at a time; None for any number.
        queues: The pool's queues that it takes runs from; all, if none is named.
    """
    queued = [each for name in queues for each in ("--work-queue", name)]
    named = ["--name", name] if name else []
    limited = ["--limit", str(limit)] if limit else []
    return ["worker", "start", "--pool", pool, "--type", "process", *queued, *named, *limited]


def _gpus() -> list[str]:
    """Return the numbers of this machine's GPUs, as its driver counts them."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return answer.stdout.split() if answer.returncode == 0 else []


def make_pool(name: str) -> None:
    """Make a work pool whose runs cannot choose what a worker executes; one that is there becomes such a pool.

    Prefect's template for processes lets the job variables of any run set the command, its folder and its environment.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    with get_client(sync_client=True) as client:
        with contextlib.suppress(ObjectAlreadyExists):
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        pool = client.read_work_pool(name)
        if pool.type == "process":
            # A pool without a template gets that of the first worker that serves it.
            template = pool.base_job_template or ProcessWorker.get_default_base_job_template()
            template = without_fields(template, EXECUTED)
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def _make_queue(pool: str, name: str, limit: int) -> None:
    """Make a queue of a pool with a limit of runs at once; one that is there keeps the limit that people gave it."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectAlreadyExists

    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        client.create_work_queue(name, work_pool_name=pool, concurrency_limit=limit)


def without_fields(template: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Return a job template without these fields and the variables of their names: no value given to a run sets them.

    A fixed environment would not do: Prefect adds what a run asks for to it. A run has its worker's environment.
    """
    job = {name: value for name, value in template["job_configuration"].items() if name not in names}
    variables = {name: each for name, each in template["variables"]["properties"].items() if name not in names}
    return {**template, "job_configuration": job, "variables": {**template["variables"], "properties": variables}}


def _make_automation(declared: dict[str, Any]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.events.schemas.automations import AutomationCore

    automation = AutomationCore.model_validate(declared)
    with get_client(sync_client=True) as client:
        known = client.read_automations_by_name(automation.name)
        if not known:
            client.create_automation(automation)
            return
        # An update gives the trigger a new id, and Prefect forgets what the old one has seen and waits for.
        enabled = {"enabled": known[0].enabled}  # somebody may have switched it off
        stored = AutomationCore.model_validate(known[0].model_dump(exclude={"id"}))
        wanted = AutomationCore.model_validate(declared | enabled)
        if wanted != stored:
            client.update_automation(known[0].id, wanted)


def _delete_automations(names: Sequence[str]) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for known in [each for name in names for each in client.read_automations_by_name(name)]:
            client.delete_automation(known.id)


def _make_webhook() -> str:
    """Make the block that sends notifications, and return its id; the server puts in the address when it sends one.

    A secret of a block would not do: the API gives it in plain text to whoever asks with `include_secrets`.
    """
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    block = CustomWebhookNotificationBlock(
        name="zimage",
        url=f"{{{{ ${WEBHOOK} }}}}",
        json_data={"title": "{{subject}}", "text": "{{subject}}\n{{body}}"},
        # The block replaces variables of the environment, but refuses a name that is not among its secrets.
        secrets={f"${WEBHOOK}": "in the server's environment"},
    )
    return str(block.save("zimage", overwrite=True))


def _notifies(action: Mapping[str, Any]) -> bool:
    return action.get("block_document_id") == NOTIFY


def _wait_for_server(server: "subprocess.Popen[bytes]", port: int, logs: Path) -> None:
    begun = time.monotonic()
    while True:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"http://{HOST}:{port}/api/health", timeout=5.0).is_success:
                return
        if server.poll() is not None or time.monotonic() - begun > STARTS_WITHIN_S:
            raise InputError(f"The Prefect server did not start; {logs / 'server.log'} says why.")
        time.sleep(LOOK_EVERY_S)


def _wait_for_end(parts: Mapping[str, "subprocess.Popen[bytes]"], logs: Path) -> None:
    while True:
        for name, process in parts.items():
            if process.poll() is not None:
                raise InputError(
                    f"{name} ended by itself (code {process.returncode}); {logs / f'{name}.log'} says why."
                )
        time.sleep(LOOK_EVERY_S)


def _refuse_port_in_use(port: int) -> None:
    """Raise InputError if something listens on a port; if that is a Prefect server, another port is no remedy."""
    with socket.socket() as probe:
        if probe.connect_ex((HOST, port)) != 0:
            return
    with contextlib.suppress(httpx.HTTPError):
        if httpx.get(f"http://{HOST}:{port}/api/health", timeout=5.0).is_success:
            raise InputError(f"A Prefect server answers on port {port} already; stop that one first.")
    raise InputError(f"Port {port} is used by a program that is no Prefect server; stop it, or choose a free --port.")


def _tell(settings: Settings, port: int, parts: list[str], pages: str, database: Database) -> None:
    lines = [
        f"UI       http://{HOST}:{port}",
        *([f"pages    {pages} (links to them are in the UI)"] if pages else []),
        f"running  {', '.join(parts)}",
        f"database {database.description}",
        *([f"note     {database.note}"] if database.note else []),
        f"store    {settings.store}",
        f"subjects {settings.workspaces}",
        f"logs     {settings.logs}",
        "Ctrl-C stops all of it.",
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
