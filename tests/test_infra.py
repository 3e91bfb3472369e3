"""What is declared in infra/ is what the code has, and is as safe as it says."""

import asyncio
import datetime
import importlib
import itertools
import json
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jsonschema
import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.server.schemas.schedules import CronSchedule
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from flows.__main__ import LASTING
from flows.stack import make_pool
from tasks.policy import FLOWS, GOES_ON, HEARTBEAT_S, LEGS, LOST_AFTER_S

INFRA = Path(__file__).parent.parent / "infra"
POOLS = sorted({leg.pool for leg in LEGS.values()})
FIXED = re.compile(r"^[\w./-]+:(?!latest)[\w.-]*\d[\w.-]*$")  # an image with a version
OURS = {"zimage:cpu", "zimage:cuda"}


def yaml_of(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text(encoding="utf-8"))


DEPLOYMENTS = {each["name"]: each for each in yaml_of("prefect.yaml")["deployments"]}
SERVICES = yaml_of("compose.yaml")["services"]
DOCKERFILE = (INFRA / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_a_deployment_is_the_flow_of_its_name(name: str) -> None:
    declared = DEPLOYMENTS[name]
    module, _, attribute = declared["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), attribute)

    assert isinstance(flow, Flow)
    assert flow.name == attribute == name
    assert declared["work_pool"]["name"] == (LEGS[name].pool if name in LEGS else "cpu")


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


def test_every_leg_can_be_started_on_its_own_machine() -> None:
    assert set(LEGS) <= set(DEPLOYMENTS)
    assert all(DEPLOYMENTS[leg]["parameters"]["spec"]["placement"] == "pools" for leg in LEGS)


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
        **{
            name: service["environment"] for name, service in SERVICES.items() if "worker" in service.get("command", [])
        },
        **{f"{pool}-pool.json": environment(pool) for pool in POOLS},
        "flows/__main__.py": LASTING,
    }

    assert {"worker-cpu", "worker-gpu"} < set(environments)
    for where, found in environments.items():
        assert int(found["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) * 3 <= LOST_AFTER_S, where
    assert int(LASTING["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == HEARTBEAT_S


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_is_of_a_version_and_waits_for_what_there_is(name: str) -> None:
    service = SERVICES[name]

    assert FIXED.match(service["image"]) or service["image"] in OURS
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
    assert answer.returncode == 0 and "Start a Prefect server" in answer.stdout, answer.stderr


def test_every_secret_of_the_stack_is_asked_for_and_none_is_written_down() -> None:
    text = (INFRA / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    example = dict(
        line.split("=", 1) for line in (INFRA / "compose.env.example").read_text().splitlines() if "=" in line
    )

    assert asked == {"PREFECT_AUTH", "DATABASE_PASSWORD", "STORE_KEY", "STORE_SECRET"}
    assert all("change-me" in example[name] for name in asked)


@pytest.mark.parametrize(("name", "index"), [("worker-gpu", "0"), ("worker-gpu-1", "1")])
def test_a_gpu_worker_reserves_a_gpu_of_its_own_and_shared_memory(name: str, index: str) -> None:
    worker = SERVICES[name]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "device_ids": [index], "capabilities": ["gpu"]}
    assert worker["shm_size"] == "8g"
    assert worker["command"][-2:] == ["--limit", "1"]


def test_no_two_workers_share_a_disk_and_each_has_a_volume_that_is_declared() -> None:
    disks = [disk_of(service) for service in SERVICES.values() if "worker" in service.get("command", [])]

    assert len(set(disks)) == len(disks) == 3
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

    assert made_bucket(s3_server).returncode == 0
    boto3.client("s3").delete_bucket(Bucket="zimage")


@pytest.mark.parametrize(
    ("code", "comes_up"),
    [("BucketAlreadyExists", True), ("BucketAlreadyOwnedByYou", True), ("InvalidAccessKeyId", False)],
)
def test_a_stack_comes_up_again_over_the_bucket_it_has_and_over_nothing_else(code: str, comes_up: bool) -> None:
    class Answer(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
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

    assert next(line for line in lines if line.startswith("FROM ")).split()[1] == "python:3.11.14-slim-bookworm"
    for stage in stages[1:]:
        assert stage.startswith("base AS ")
        users = re.findall(r"^USER (\S+)", stage, re.MULTILINE)
        assert users == ["zimage"]
        assert stage.index("USER zimage") < stage.index("ENTRYPOINT")
        assert all("--constraint constraints.txt" in run for run in re.findall(r"pip install (?!--no-deps).*", stage))


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
    assert image("cpu").index(asking) < image("cpu").index("'.[pipeline,sign]'")


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

    assert job(pool)["spec"]["backoffLimit"] == 0  # Prefect starts a lost leg again, and knows how often
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


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
