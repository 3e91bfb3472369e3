"""What is declared in infra/ is what the code has, and is as safe as it says."""

import asyncio
import datetime
import importlib
import importlib.metadata
import itertools
import json
import platform
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import compose_spec
import jsonschema
import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.server.schemas.schedules import CronSchedule
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from flows.__main__ import LASTING
from flows.server.stack import make_pool
from tasks.policy import FLOWS, GOES_ON, HEARTBEAT_S, LOST_AFTER_S, PHASES

INFRA = Path(__file__).parent.parent / "infra"
POOLS = sorted({phase.pool for phase in PHASES.values()})
OURS = {"zimage:cpu", "zimage:cuda"}
ROLES = {path.stem for path in (INFRA / "access" / "roles").glob("*.json")}
HARDENED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
KUBERNETES = ["1.34", "1.37"]  # versions whose schemas the documents have to fit


def yaml_of(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text(encoding="utf-8"))


DEPLOYMENTS = {each["name"]: each for each in yaml_of("prefect.yaml")["deployments"]}
SERVICES = yaml_of("compose.yaml")["services"]
NETWORK = INFRA / "kubernetes" / "network-policy.yaml"
DOCKERFILE = (INFRA / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_is_the_flow_of_its_name(name: str) -> None:
    declared = DEPLOYMENTS[name]
    module, _, attribute = declared["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), attribute)

    assert isinstance(flow, Flow)
    assert flow.name == attribute == name
    assert declared["work_pool"]["name"] == (PHASES[name].pool if name in PHASES else {"score": "gpu"}.get(name, "cpu"))


@pytest.mark.parametrize("name", [name for name, each in DEPLOYMENTS.items() if "parameters" in each])
def test_what_a_deployment_sets_is_what_its_flow_can_be_asked(name: str) -> None:
    module, _, attribute = DEPLOYMENTS[name]["entrypoint"].rpartition(".")
    spec = getattr(importlib.import_module(module), attribute).fn.__annotations__["spec"]
    whose = {"subject": "ada"} if "subject" in spec.model_fields else {}

    spec(**DEPLOYMENTS[name]["parameters"]["spec"], **whose)


@pytest.mark.parametrize("there", [False, True])
def test_a_run_cannot_choose_what_a_worker_executes(there: bool, prefect_server: None) -> None:
    name = f"processes-{there}"
    asked = {"command": "touch mine", "working_dir": "/tmp", "env": {"PYTHONPATH": "/tmp"}, "name": "a run"}
    with get_client(sync_client=True) as client:
        if there:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        make_pool(name)
        make_pool(name)
        template = client.read_work_pool(name).base_job_template

    job = asyncio.run(ProcessJobConfiguration.from_template_and_values(template, asked))

    assert (job.command, job.working_dir, job.env) == (None, None, {})
    assert job.name == "a run"


def test_every_phase_can_be_started_on_its_own_machine() -> None:
    assert set(PHASES) <= set(DEPLOYMENTS)
    assert all(DEPLOYMENTS[phase]["parameters"]["spec"]["placement"] == "pools" for phase in PHASES)


def test_a_schedule_has_a_name_and_starts_nothing_by_itself() -> None:
    schedules = [schedule for each in DEPLOYMENTS.values() for schedule in each.get("schedules", [])]

    assert schedules
    assert all(schedule["slug"] and schedule["active"] is False for schedule in schedules)


ZONES = {  # with the days of 2027 on which their clocks change
    "Europe/Berlin": ("2027-03-28", "2027-10-31"),
    "America/New_York": ("2027-03-14", "2027-11-07"),
    "America/Santiago": ("2027-04-03", "2027-09-05"),  # at midnight
    "Australia/Lord_Howe": ("2027-04-04", "2027-10-03"),  # by half an hour
}


@pytest.mark.parametrize(("zone", "day"), [(zone, day) for zone, days in ZONES.items() for day in days])
def test_the_nightly_schedule_runs_once_a_night_where_clocks_change(zone: str, day: str) -> None:
    """As Prefect's server plans it: again and again, three runs from now on."""
    (declared,) = DEPLOYMENTS["retrain"]["schedules"]
    nightly = CronSchedule(cron=declared["cron"], timezone=declared["timezone"])
    hour, here = datetime.timedelta(hours=1), ZoneInfo(zone)
    noon = datetime.datetime.combine(datetime.date.fromisoformat(day), datetime.time(12), here)
    offsets = {(noon - 36 * hour).utcoffset(), (noon + 12 * hour).utcoffset()}
    begin, end = (moment.astimezone(datetime.UTC) for moment in (noon - 48 * hour, noon + 48 * hour))

    planned = {
        datetime.datetime.fromtimestamp(each.timestamp(), datetime.UTC)
        for start in range(96)
        for each in nightly._get_dates_generator(n=3, start=begin + start * hour, end=end)
    }

    assert len(offsets) == 2, "the clocks change on another day"
    nights = Counter((each.astimezone(here) - 12 * hour).date() for each in planned)
    assert set(nights.values()) == {1} and len(nights) == 4
    assert {later - earlier for earlier, later in itertools.pairwise(sorted(planned))} == {24 * hour}


@pytest.mark.parametrize("declared", yaml_of("automations.yaml"), ids=lambda declared: declared["name"])
def test_an_automation_is_one_that_prefect_reads(declared: dict[str, Any]) -> None:
    for action in declared["actions"]:
        if "block_document_id" in action:
            action["block_document_id"] = "00000000-0000-0000-0000-000000000000"

    AutomationCore.model_validate(declared)


def test_what_goes_on_by_itself_is_a_flow_with_a_deployment() -> None:
    assert set(GOES_ON) <= set(FLOWS) == set(DEPLOYMENTS)


def test_every_place_that_runs_flows_gives_heartbeats_three_times_as_often_as_a_run_is_called_lost() -> None:
    environments = {
        **{name: service["environment"] for name, service in SERVICES.items() if "work" in service.get("command", [])},
        **{f"{pool}-pool.json": environment(pool) for pool in POOLS},
        "flows/__main__.py": LASTING,
    }

    assert {"worker-cpu", "worker-publisher", "worker-eraser", "worker-gpu"} < set(environments)
    for where, found in environments.items():
        assert int(found["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) * 3 <= LOST_AFTER_S, where
    assert int(LASTING["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == HEARTBEAT_S


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_of_a_version_and_waits_for_what_there_is(name: str) -> None:
    service = SERVICES[name]

    assert re.match(r"^\$\{\w+_IMAGE:\?", service["image"]) or service["image"] in OURS
    assert set(service.get("depends_on", {})) <= set(SERVICES)
    for dependency, how in service.get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[dependency]


def test_only_this_machine_can_reach_the_server_and_it_asks_for_a_password() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert sorted(ports) == ["127.0.0.1:4200:4200", "127.0.0.1:8333:8333"]
    assert "${PREFECT_AUTH:?" in SERVICES["server"]["environment"]["PREFECT_SERVER_API_AUTH_STRING"]


def test_the_server_starts_as_everywhere_with_what_prefect_knows_as_options() -> None:
    module, *options = SERVICES["server"]["command"]
    command = [sys.executable, "-m", module, *options, "--help"]
    answer = subprocess.run(command, cwd=INFRA.parent, capture_output=True, text=True, check=False)

    assert module == "flows.server"
    assert answer.returncode == 0 and "Run Prefect's server" in answer.stdout, answer.stderr


def test_the_server_of_containers_is_guarded_as_that_of_make_serve() -> None:
    environment = SERVICES["server"]["environment"]

    assert environment["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true"
    assert set(environment["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")) == {
        "http://127.0.0.1:4200",
        "http://localhost:4200",
        "http://server:4200",  # the host by which workers ask
    }
    assert SERVICES["worker-cpu"]["environment"]["PREFECT_API_URL"] == "http://server:4200/api"


ASKED = {
    *("PREFECT_AUTH", "DATABASE_PASSWORD", "PYTHON_IMAGE", "POSTGRES_IMAGE", "STORE_IMAGE"),
    *(f"{role}_{part}" for role in ("STORE", "CPU", "GPU", "PUBLISHER", "ERASER") for part in ("KEY", "SECRET")),
}


def test_every_secret_of_the_stack_is_asked_for_and_none_is_written_down() -> None:
    text = (INFRA / "compose.yaml").read_text()
    lines = (INFRA / "compose.env.example").read_text().splitlines()
    example = dict(line.split("=", 1) for line in lines if "=" in line and line[0] != "#")

    assert set(re.findall(r"\$\{(\w+):\?", text)) == ASKED
    assert {example[name] for name in ASKED} == {""}
    assert "change-me" not in text + "".join(lines)


def environment_of_compose(folder: Path, docker: str) -> "subprocess.CompletedProcess[str]":
    """What infra/compose-env.sh writes where `docker` is this program."""
    (folder / "docker").write_text(docker)
    (folder / "docker").chmod(0o755)
    found = {"PATH": f"{folder}:/usr/bin:/bin"}
    return subprocess.run([INFRA / "compose-env.sh"], env=found, capture_output=True, text=True, check=False)


def test_the_environment_of_the_stack_has_secrets_of_its_own_and_images_by_digest(tmp_path: Path) -> None:
    answering = f"#!/bin/sh\necho sha256:{64 * '0'}\n"
    made = [
        dict(line.split("=", 1) for line in environment_of_compose(tmp_path, answering).stdout.splitlines())
        for _ in range(2)
    ]
    secret = {name for name in ASKED if not name.endswith("_IMAGE")}

    assert set(made[0]) >= ASKED
    assert all(len(made[0][name]) >= 48 and made[0][name] != made[1][name] for name in secret)
    assert len({made[0][name] for name in secret}) == len(secret)
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:0{64}", made[0][name]) for name in ASKED - secret)


def test_without_an_answer_of_the_registry_nothing_is_written(tmp_path: Path) -> None:
    answer = environment_of_compose(tmp_path, "#!/bin/sh\nexit 1\n")

    assert (answer.returncode, answer.stdout) == (1, "")
    assert "The digest of python:3.11.14-slim-bookworm cannot be asked for; install docker" in answer.stderr


def filled() -> dict[str, Any]:
    """The compose file with a word in the place of each variable, as compose itself fills it in."""
    text = re.sub(r"\$\{\w+:-(\./\w+)\}", r"\1", (INFRA / "compose.yaml").read_text(encoding="utf-8"))
    text = re.sub(r"(?<!\$)\$\{(\w+)(:[?-][^}]*)?\}", lambda found: f"of-{found[1].lower()}", text)
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_the_compose_file_fits_the_specification() -> None:
    specified = compose_spec.PyCompose.from_yaml(yaml.safe_dump(filled(), default_flow_style=False))
    specified.validate()

    assert set(specified.service_names()) == set(SERVICES)


WORKERS = {
    "worker-cpu": ("cpu", {"default", "personalize"}, "CPU"),
    "worker-publisher": ("cpu", {"publish"}, "PUBLISHER"),
    "worker-eraser": ("cpu", {"forget"}, "ERASER"),
    "worker-gpu": ("gpu", set[str](), "GPU"),
    "worker-gpu-1": ("gpu", set[str](), "GPU"),
}


def test_each_worker_has_the_queues_and_the_keys_of_one_role_and_every_deployment_has_a_worker() -> None:
    for name, (pool, queues, role) in WORKERS.items():
        arguments = SERVICES[name]["command"]
        assert arguments[:3] == ["flows", "work", pool]
        assert {arguments[i + 1] for i, each in enumerate(arguments) if each == "--queue"} == queues
        assert SERVICES[name]["environment"]["AWS_ACCESS_KEY_ID"].startswith(f"${{{role}_KEY:?")
        assert SERVICES[name]["environment"]["AWS_SECRET_ACCESS_KEY"].startswith(f"${{{role}_SECRET:?")

    taken = {(pool, queue) for pool, queues, _ in WORKERS.values() for queue in queues or {"default"}}
    assert {
        (each["work_pool"]["name"], each["work_pool"].get("work_queue_name", "default"))
        for each in DEPLOYMENTS.values()
    } == taken


def test_runs_of_other_rights_have_queues_and_secrets_of_their_own() -> None:
    found = {}
    for name, each in DEPLOYMENTS.items():
        pool = each["work_pool"]
        default = template(pool["name"])["variables"]["properties"]["secret_name"]["default"]
        found[name] = pool.get("job_variables", {}).get("secret_name", default)

    assert found == {
        **dict.fromkeys(["personalize", "prepare", "retrain"], "zimage-cpu-agent"),
        **dict.fromkeys(["learn", "score"], "zimage-gpu-agent"),
        **dict.fromkeys(["publish", "promote"], "zimage-publisher"),
        "forget": "zimage-eraser",
    }
    assert {each.removeprefix("zimage-") for each in found.values()} | {"reader"} == ROLES


def test_the_store_knows_the_keys_of_each_worker_and_only_its_owner_s_may_administrate() -> None:
    identities = json.loads(filled()["configs"]["identities"]["content"])["identities"]
    known = {each["credentials"][0]["accessKey"]: each["actions"] for each in identities}

    assert set(known) == {f"of-{role}_key" for role in ("store", "cpu", "gpu", "publisher", "eraser")}
    assert [name for name, actions in known.items() if "Admin" in actions] == ["of-store_key"]
    assert all(action.endswith(":zimage") for name, each in known.items() for action in each if name != "of-store_key")


@pytest.mark.parametrize("name", SERVICES)
def test_no_container_gains_rights_and_ours_write_to_their_disk_and_tmp_alone(name: str) -> None:
    service = SERVICES[name]

    assert service["security_opt"] == ["no-new-privileges:true"]
    if service["image"] in OURS:
        assert service["cap_drop"] == ["ALL"] and service["read_only"] is True
        assert [each.split(":")[0] for each in service["tmpfs"]] == ["/tmp"]


@pytest.mark.parametrize(("name", "index"), [("worker-gpu", "0"), ("worker-gpu-1", "1")])
def test_a_gpu_worker_reserves_a_gpu_of_its_own_and_shared_memory(name: str, index: str) -> None:
    worker = SERVICES[name]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "device_ids": [index], "capabilities": ["gpu"]}
    assert worker["shm_size"] == "8g"
    assert worker["command"][-2:] == ["--limit", "1"]


def test_no_two_workers_share_a_disk_but_for_who_erases_it_and_each_has_a_volume_that_is_declared() -> None:
    disks = [disk_of(SERVICES[name]) for name in WORKERS if name != "worker-eraser"]

    assert disk_of(SERVICES["worker-eraser"]) == disk_of(SERVICES["worker-cpu"])
    assert len(set(disks)) == len(disks) == 4
    assert set(disks) <= set(yaml_of("compose.yaml")["volumes"])


def disk_of(service: dict[str, Any]) -> str:
    (disk,) = [each for each in service["volumes"] if each.endswith(":/var/lib/zimage")]
    return str(disk.partition(":")[0])


@pytest.mark.parametrize("name", ["worker-cpu", "worker-gpu", "worker-gpu-1"])
def test_who_pins_a_base_model_sees_it_where_who_opens_it_does(name: str) -> None:
    worker = SERVICES[name]

    assert "${MODELS:-./models}:/models:ro" in worker["volumes"]
    assert worker["environment"]["HF_HOME"] == "/models/hub"


def made_bucket(endpoint: str) -> "subprocess.CompletedProcess[str]":
    """Run what the service `bucket` runs, against the store at an address."""
    service = SERVICES["bucket"]
    program, *arguments = [*service["entrypoint"], *service["command"]]
    assert program == "python"
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    where = {**keys, "AWS_ENDPOINT_URL_S3": endpoint, "AWS_MAX_ATTEMPTS": "1"}
    return subprocess.run([sys.executable, *arguments], env=where, capture_output=True, text=True, check=False)


def test_the_stack_makes_its_bucket(s3: None, s3_server: str) -> None:
    import boto3

    for _ in range(2):
        assert made_bucket(s3_server).returncode == 0
        found = boto3.client("s3").get_bucket_encryption(Bucket="zimage")["ServerSideEncryptionConfiguration"]["Rules"]
        assert found[0]["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}
        assert boto3.client("s3").get_bucket_versioning(Bucket="zimage")["Status"] == "Enabled"
    boto3.client("s3").delete_bucket(Bucket="zimage")


@pytest.mark.parametrize(
    ("code", "comes_up"),
    [("BucketAlreadyExists", True), ("BucketAlreadyOwnedByYou", True), ("InvalidAccessKeyId", False)],
)
def test_a_stack_comes_up_again_over_the_bucket_it_has_and_over_nothing_else(code: str, comes_up: bool) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            if "?" in self.path:  # versions and encryption, which every bucket gets
                self.send_response(200)
                self.end_headers()
                return
            content = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self.send_response(409)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        answer = made_bucket(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()

    assert (answer.returncode == 0) is comes_up, answer.stderr
    assert comes_up or code in answer.stderr


def test_our_images_run_as_a_user_of_versions_that_are_pinned() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    stages = "\n".join(lines).split("\nFROM ")[1:]

    assert next(line for line in lines if line.startswith("FROM ")) == "FROM ${PYTHON_IMAGE} AS base"
    assert "ARG PYTHON_IMAGE" in lines  # without a value: a build that names no digest fails
    assert "--chown" not in DOCKERFILE  # code and packages are root's
    for stage in stages[1:]:
        assert stage.startswith("base AS ")
        users = re.findall(r"^USER (\S+)", stage, re.MULTILINE)
        assert users == ["zimage"]
        assert stage.index("USER zimage") < stage.index("ENTRYPOINT")
        assert all("--constraint constraints.txt" in run for run in re.findall(r"pip install (?!--no-deps).*", stage))
        assert "--no-deps --no-build-isolation --require-hashes --requirement requirements.lock" in stage


def lock(name: str) -> dict[str, str]:
    """Versions by name; every line has a hash."""
    lines = [line for line in (INFRA / name).read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    return {canonical(line.partition("==")[0]): line.partition("==")[2].split()[0] for line in lines}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: set[str], seen: set[tuple[str, str]]) -> None:
    """Add what a package and its extras ask for on the machine of an image, and what that asks for."""
    for extra in extras | {""}:
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for each in map(Requirement, importlib.metadata.requires(name) or []):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                needed(canonical(each.name), set(each.extras), seen)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the images' packages are for x86-64")
def test_every_package_of_an_image_but_torch_has_the_version_that_was_tried_and_a_hash() -> None:
    seen: set[tuple[str, str]] = set()
    needed("zimage", {"pipeline", "sign"}, seen)
    names = {name for name, _ in seen if not name.startswith(("nvidia-", "cuda-", "triton"))}
    constraints = (INFRA.parent / "constraints.txt").read_text().splitlines()
    pinned = {canonical(line.partition("==")[0]): line.partition("==")[2] for line in constraints if "==" in line}
    pinned |= lock("build.lock")

    locked = lock("requirements.lock")
    assert set(locked) == names - {"zimage", "torch"} | {"insightface"}
    assert {name: pinned[name] for name in locked} == locked
    assert set(lock("build.lock")) == {"setuptools"}


def image(target: str) -> str:
    """The lines of the Dockerfile that make one of our images."""
    (found,) = re.findall(rf"^FROM base AS {target}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_image_for_gpus_has_the_c_compiler_that_its_presets_need() -> None:
    from zimage.training.memory import COMPILERS, PRESETS

    lines = image("cuda").replace("\\\n", " ")
    (installed,) = re.findall(r"apt-get install (.*?)&&", lines)

    assert any(preset.memory.compile for preset in PRESETS.values())
    assert set(installed.split()) & set(COMPILERS)
    assert {"libc6-dev", "--no-install-recommends"} <= set(installed.split())
    assert lines.index("apt-get install") < lines.index("/var/lib/apt/lists") < lines.index("USER zimage")


def test_an_index_that_has_torch_is_asked_for_torch_alone() -> None:
    """What torch asks for is pinned to versions that such an index may not have, and comes from PyPI afterwards."""
    (asking,) = re.findall(r"pip install .*--index-url.*", DOCKERFILE)

    assert asking.startswith("pip install --no-deps ")
    assert "--extra-index-url" not in asking
    assert asking.endswith("""https://download.pytorch.org/whl/cpu "$(grep '^torch==' constraints.txt)\"""")
    assert image("cpu").index(asking) < image("cpu").index("requirements.lock")


def test_only_what_is_named_goes_into_an_image() -> None:
    lines = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in lines if line.startswith("!")]

    assert lines[1] == "*"
    assert all((INFRA.parent / name).exists() for name in kept)
    assert not {"data", "tests", "workspaces", "store", ".git"} & set(kept)


def test_docker_reads_the_compose_file_where_it_is_there() -> None:
    """The client needs no engine for this; without it, the checks above are all there are."""
    found = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False) if has_docker() else None
    if found is None or found.returncode != 0:
        pytest.skip(
            "docker's compose plugin is not here; compose.yaml was only checked by the other tests of this file"
        )
    command = ["docker", "compose", "--env-file", "compose.env.example", "-f", "compose.yaml", "config", "--quiet"]
    answer = subprocess.run(command, cwd=INFRA, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


def has_docker() -> bool:
    return subprocess.run(["which", "docker"], capture_output=True, check=False).returncode == 0


def template(pool: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((INFRA / "kubernetes" / f"{pool}-pool.json").read_text())
    return found


@pytest.mark.parametrize("pool", POOLS)
def test_a_server_takes_the_pool_for_kubernetes(pool: str, prefect_server: None) -> None:
    with get_client(sync_client=True) as client:
        made = client.create_work_pool(
            WorkPoolCreate(name=f"{pool}-kubernetes", type="kubernetes", base_job_template=template(pool))
        )

    assert made.base_job_template == template(pool)


@pytest.mark.parametrize("pool", POOLS)
def test_the_defaults_of_a_pool_are_what_its_own_schema_allows(pool: str) -> None:
    schema = template(pool)["variables"]
    jsonschema.Draft202012Validator.check_schema(schema)

    jsonschema.validate({name: each["default"] for name, each in schema["properties"].items()}, schema)
    placeholders = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template(pool)["job_configuration"])))
    assert placeholders <= set(schema["properties"])


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_runs_without_rights_and_is_not_started_twice(pool: str) -> None:
    pod = job(pool)["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert job(pool)["spec"]["backoffLimit"] == 0  # Prefect starts a lost phase again, and knows how often
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == HARDENED
    writable = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
    assert writable == {"/var/lib/zimage", "/tmp", "/dev/shm"}


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("pool", POOLS)
def test_a_job_fits_the_schema_of_kubernetes(pool: str, version: str) -> None:
    found = job(pool)
    pod = found["spec"]["template"]["spec"]
    for name in ("parallelism", "completions"):  # prefect-kubernetes looks for them here, where Kubernetes has none
        pod.pop(name)
    pod["containers"][0] |= {"env": [{"name": "A", "value": "b"}], "args": ["python"]}

    assert kubernetes_validate.validate(found, version, strict=True) == version


@pytest.mark.parametrize("version", KUBERNETES)
def test_the_network_policies_fit_the_schema_of_kubernetes_and_open_nothing_to_the_inside(version: str) -> None:
    policies = {each["metadata"]["name"]: each for each in yaml.safe_load_all(NETWORK.read_text(encoding="utf-8"))}

    for each in policies.values():
        assert kubernetes_validate.validate(each, version, strict=True) == version
        assert "ingress" not in each["spec"]
        assert all(rule["to"] and rule["ports"] for rule in each["spec"].get("egress", []))
    assert policies["closed"]["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    labels = template("cpu")["variables"]["properties"]["labels"]["default"]
    assert policies["jobs"]["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_a_gpu_job_gets_a_gpu_a_node_that_has_one_and_shared_memory() -> None:
    pod = job("gpu")["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}} in pod["volumes"]


@pytest.mark.parametrize("pool", POOLS)
def test_the_jobs_of_both_pools_see_the_models_in_one_place(pool: str) -> None:
    pod = job(pool)["spec"]["template"]["spec"]
    (container,) = pod["containers"]

    assert {"name": "models", "mountPath": "/models", "readOnly": True} in container["volumeMounts"]
    claim = {"claimName": "zimage-models", "readOnly": True}
    assert {"name": "models", "persistentVolumeClaim": claim} in pod["volumes"]
    assert environment(pool)["HF_HOME"] == "/models/hub"


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_has_all_that_a_kubernetes_worker_insists_on(pool: str) -> None:
    """As prefect_kubernetes.worker._get_base_job_manifest of 0.8.0 has it; a worker refuses runs whose job has less."""
    wanted = {"parallelism": 1, "completions": 1, "restartPolicy": "Never"}
    found = job(pool)

    assert (found["apiVersion"], found["kind"]) == ("batch/v1", "Job")
    assert "labels" in found["metadata"]
    assert wanted.items() <= found["spec"]["template"]["spec"].items()
    assert found["spec"]["template"]["spec"]["containers"][0]["name"] == "prefect-job"


@pytest.mark.parametrize("pool", POOLS)
def test_the_guide_to_kubernetes_starts_a_worker_of_each_pool_with_a_pinned_package(pool: str) -> None:
    text = (INFRA / "kubernetes" / "README.md").read_text(encoding="utf-8")

    assert f"prefect work-pool create {pool} --type kubernetes" in text
    assert f"prefect worker start --pool {pool} --type kubernetes" in text
    assert re.search(r"^pip install .*prefect-kubernetes==[\d.]+ ", text, re.MULTILINE)
    assert "prefect work-pool set-concurrency-limit gpu" in text


def environment(pool: str) -> dict[str, str]:
    """What a job of the pool has in its environment where nobody sets more."""
    found: dict[str, str] = template(pool)["variables"]["properties"]["env"]["default"]
    assert template(pool)["job_configuration"]["env"] == "{{ env }}"
    return found


def job(pool: str) -> dict[str, Any]:
    """The job that a worker would make of the defaults."""
    found = template(pool)
    values = {name: each["default"] for name, each in found["variables"]["properties"].items()}
    made: dict[str, Any] = apply_values(found["job_configuration"]["job_manifest"], values)
    return made


def test_make_names_the_remedy_where_no_python_is_found(tmp_path: Path) -> None:
    command = ["make", "--silent", "install", "PYTHON=", f"VENV={tmp_path / 'venv'}"]
    answer = subprocess.run(command, cwd=INFRA.parent, capture_output=True, text=True, check=False)

    assert answer.returncode == 2
    assert answer.stdout == (
        "No Python 3.11 or later was found; install one, or name it: make PYTHON=/path/to/python3.11\n"
    )


def test_architecture_names_every_folder_of_the_code() -> None:
    text = (INFRA / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"([a-z_]+)/", text))
    folders = {path.parent.name for top in ("flows", "tasks", "zimage") for path in (INFRA.parent / top).rglob("*.py")}

    assert folders <= named
