"""What is declared in infra/ is what the code has, and is as safe as it says."""

import fnmatch
import importlib
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.events.schemas.automations import AutomationCore
from prefect.utilities.templating import apply_values

from flows.__main__ import LASTING
from tasks.policy import HEARTBEAT_S, LEGS, LOST_AFTER_S

INFRA = Path(__file__).parent.parent / "infra"
POOLS = sorted({leg.pool for leg in LEGS.values()})
FIXED = re.compile(r"^[\w./-]+:(?!latest)[\w.-]*\d[\w.-]*$")  # an image with a version
OURS = {"zimage:cpu", "zimage:cuda"}


def yaml_of(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text(encoding="utf-8"))


DEPLOYMENTS = {each["name"]: each for each in yaml_of("prefect.yaml")["deployments"]}
SERVICES = yaml_of("compose.yaml")["services"]


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


def test_every_leg_can_be_started_on_its_own_machine() -> None:
    assert set(LEGS) <= set(DEPLOYMENTS)
    assert all(DEPLOYMENTS[leg]["parameters"]["spec"]["placement"] == "pools" for leg in LEGS)


def test_a_schedule_has_a_name_and_starts_nothing_by_itself() -> None:
    schedules = [schedule for each in DEPLOYMENTS.values() for schedule in each.get("schedules", [])]

    assert schedules
    assert all(schedule["slug"] and schedule["active"] is False for schedule in schedules)


@pytest.mark.parametrize("declared", yaml_of("automations.yaml"), ids=lambda declared: declared["name"])
def test_an_automation_is_one_that_prefect_reads(declared: dict[str, Any]) -> None:
    for action in declared["actions"]:
        if "block_document_id" in action:
            action["block_document_id"] = "00000000-0000-0000-0000-000000000000"

    AutomationCore.model_validate(declared)


def test_a_parent_that_was_given_up_is_one_that_goes_on() -> None:
    lost, onward = (
        next(each for each in yaml_of("automations.yaml") if each["name"] == name)
        for name in ("zimage-lost-worker", "zimage-go-on")
    )

    said = onward["trigger"]["match"]["prefect.state-message"]
    assert any(fnmatch.fnmatchcase(lost["actions"][0]["message"], pattern) for pattern in said)


def test_a_worker_counts_as_lost_when_the_policy_says_so() -> None:
    (lost,) = [each for each in yaml_of("automations.yaml") if each["name"] == "zimage-lost-worker"]

    assert lost["trigger"]["within"] == LOST_AFTER_S
    assert f"{LOST_AFTER_S} s" in lost["actions"][0]["message"]
    assert int(LASTING["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"]) == HEARTBEAT_S < LOST_AFTER_S


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


def test_every_secret_of_the_stack_is_asked_for_and_none_is_written_down() -> None:
    text = (INFRA / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?", text))
    example = dict(
        line.split("=", 1) for line in (INFRA / "compose.env.example").read_text().splitlines() if "=" in line
    )

    assert asked == {"PREFECT_AUTH", "DATABASE_PASSWORD", "STORE_KEY", "STORE_SECRET"}
    assert all("change-me" in example[name] for name in asked)


def test_the_gpu_worker_reserves_a_gpu_and_shared_memory() -> None:
    worker = SERVICES["worker-gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]

    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert worker["shm_size"] == "8g"
    assert worker["command"][-2:] == ["--limit", "1"]


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


def job(pool: str) -> dict[str, Any]:
    """The job that a worker would make of the defaults."""
    found = template(pool)
    values = {name: each["default"] for name, each in found["variables"]["properties"].items()}
    made: dict[str, Any] = apply_values(found["job_configuration"]["job_manifest"], values)
    return made
