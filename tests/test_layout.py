"""The promises of the project's shape: what lies where, what is called what, and who may do what."""

import ast
import importlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from flows.spec import Preset
from tasks.workspace.subject import DEFAULT_PRESET, presets
from zimage.core.signatures import STAGES, signature

PROJECT = Path(__file__).parent.parent
PACKAGES = ("zimage", "tasks", "flows")
FOLDERS = {"flows", "tasks", "zimage", "infra", "tests", "data", "findings"}
FILES = {
    *("README.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "CHANGELOG.md", "pyproject.toml", "constraints.txt"),
    *("params.yaml", "dvc.yaml", "code.yaml", "dvc.lock"),
}
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "base_utils"}
NETWORK = {"urllib", "http", "socket", "requests", "httpx", "aiohttp", "ftplib", "smtplib"}
UNSAFE_YAML = ("yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.FullLoader", "yaml.UnsafeLoader")
HANDS_ON = "zimage/photos/worker_pool.py"  # gives its children its environment and talks to them through a socket pair
# About more than one module.
ACROSS = {
    "tests/flows/test_limit.py",  # stack, worker and phases at once
    "tests/flows/test_serve.py",  # command, stack and server at once
    "tests/flows/test_vacuum.py",  # what the environment of a stack makes its server do
    "tests/test_layout.py",
    "tests/test_infra.py",
    "tests/evaluation/test_truth.py",
    "tests/lora/test_dora.py",
    "tests/lora/test_lokr.py",  # reading, converting, merging and both loaders
    "tests/lora/test_matrix.py",
    "tests/test_access.py",
    "tests/test_audit.py",
    "tests/test_pages.py",
    "tests/test_same_result.py",
    "tests/tasks/test_private_folders.py",
    "tests/tasks/test_contact_sheet.py",  # a stage's page, the store and the page server in a browser
    "tests/test_documents.py",
    "tests/test_documents_run.py",
    "tests/training/test_kinds.py",
    "tests/training/test_parity.py",
    "tests/training/test_on_a_gpu.py",
    "tests/training/test_gpu_benchmark.py",
    "tests/training/test_team.py",
}
# What a stage reads, by the name its signature gives it.
PLACES = {"photos": "data/photos", "consent": "data/consent.yaml", "overrides": "data/overrides"}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((PROJECT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def yaml_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PROJECT / name).read_text(encoding="utf-8"))
    return found


def imported_by(path: Path) -> set[str]:
    """The top-level names of all modules that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def uses(path: Path, *attributes: str) -> bool:
    """Whether a file takes one of these dotted attributes, such as `os.environ`."""
    nodes = ast.walk(ast.parse(path.read_bytes()))
    return any(isinstance(node, ast.Attribute) and ast.unparse(node) in attributes for node in nodes)


def test_the_top_level_is_what_it_was_agreed_to_be() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in tracked.splitlines()}

    assert {name for name in top if not name.startswith(".")} <= FOLDERS | FILES


@pytest.mark.parametrize("stage", STAGES)
def test_one_word_names_a_stage_everywhere(stage: str) -> None:
    assert (PROJECT / "zimage" / "stages" / f"{stage}.py").is_file()
    assert callable(getattr(importlib.import_module(f"zimage.stages.{stage}"), stage))
    assert (PROJECT / "tests" / "stages" / f"test_{stage}.py").is_file()
    assert getattr(importlib.import_module("tasks.stages"), stage).name == stage


def test_there_are_no_other_stages() -> None:
    modules = {path.stem for path in (PROJECT / "zimage" / "stages").glob("*.py")} - {"__init__"}

    assert modules == set(STAGES)
    assert tuple(yaml_of("dvc.yaml")["stages"]) == STAGES
    assert tuple(yaml_of("code.yaml")) == (*STAGES, "photos")
    assert list(yaml_of("data/dvc.yaml")["stages"]) == ["photos"]


def test_params_have_the_shared_sections_and_then_the_stages_in_order() -> None:
    shared = ("base", "subject", "machine")

    assert tuple(yaml_of("params.yaml")) == (*shared, *STAGES)


@pytest.mark.parametrize("stage", STAGES)
def test_the_line_in_dvc_yaml_is_the_signature(stage: str) -> None:
    read, line = signature(stage), yaml_of("dvc.yaml")["stages"][stage]
    inputs = [PLACES.get(name, f"data/{name}") for name in read.folders[:-1]]
    sections = ["base.identity" if section == "base" else section for section in read.sections.values()]
    sections = [section for section in sections if section != "machine"]  # it changes no result

    assert line["cmd"] == " ".join(["python -m zimage", stage, *inputs, f"data/{stage}"])
    assert list(dict.fromkeys(folder_of(path, inputs) for path in line["deps"])) == inputs
    assert line["params"] == [*sections, {"code.yaml": [stage]}]
    assert {folder_of(path, [f"data/{stage}"]) for path in line["outs"]} == {f"data/{stage}"}


def folder_of(path: str, folders: list[str]) -> str:
    """The one of some folders in which a path lies, or the path."""
    return next((folder for folder in folders if path.startswith(f"{folder}/")), path)


def test_a_stage_reads_outputs_of_others_by_the_names_under_which_these_were_made() -> None:
    """So a scan finds by the lock alone whether a stage has read the newest."""
    stages = yaml_of("dvc.yaml")["stages"]
    made = {out for stage in stages.values() for out in stage["outs"]} | set(PLACES.values())

    assert {read for stage in stages.values() for read in stage["deps"]} <= made


def test_metrics_and_plots_are_cached_outs_named_on_top() -> None:
    pipeline = yaml_of("dvc.yaml")

    assert pipeline["metrics"] == [f"data/{stage}/metrics.json" for stage in STAGES]
    assert all("metrics" not in stage and "plots" not in stage for stage in pipeline["stages"].values())


@pytest.mark.parametrize("stage", STAGES)
def test_every_section_of_params_yaml_is_what_its_stage_expects(stage: str) -> None:
    function = getattr(importlib.import_module(f"zimage.stages.{stage}"), stage)
    params = yaml_of("params.yaml")

    for keyword, section in signature(stage).sections.items():
        function.__annotations__[keyword].model_validate(params[section])


def test_every_value_in_params_yaml_says_what_it_is() -> None:
    lines = (PROJECT / "params.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"\s*[a-z_0-9]+: [^#\s]", line)]

    # Words of a list and texts explain themselves by the key they stand under.
    assert [line for line in values if " # " not in line and "[" not in line and '"' not in line] == []


def test_presets_are_the_ones_a_form_offers_and_the_default_is_one() -> None:
    assert get_args(Preset) == ("", *presets())
    assert DEFAULT_PRESET in presets()


def test_the_demo_scores_with_the_engine_that_chose_the_photos() -> None:
    params = yaml_of("params.yaml")

    assert params["evaluate"]["engine"] == params["detect"]["engine"]


def test_the_tests_mirror_the_code() -> None:
    strays = set()
    for path in sources("tests"):
        folder, name = path.parent.relative_to(PROJECT / "tests"), path.stem.removeprefix("test_")
        homes = [PROJECT / "zimage" / folder, PROJECT / folder]
        mirrored = any((home / f"{each}.py").is_file() for home in homes for each in (name, f"__{name}__"))
        if path.stem != name and not mirrored:
            strays.add(relative(path))

    assert strays <= ACROSS


def test_tests_are_no_packages() -> None:
    assert [relative(path) for path in sources("tests") if path.name == "__init__.py"] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_does_nothing(package: str) -> None:
    for path in sources(package):
        if path.name == "__init__.py":
            body = ast.parse(path.read_bytes()).body
            assert len(body) == 1 and ast.get_docstring(ast.parse(path.read_bytes())), relative(path)


def test_no_module_has_a_vague_name() -> None:
    assert [relative(path) for path in sources(*PACKAGES) if path.stem in VAGUE] == []


def test_no_line_is_repeated_over_the_whole_width() -> None:
    assert [relative(path) for path in sources(*PACKAGES) if "# ----" in path.read_text(encoding="utf-8")] == []


def test_only_the_command_line_reads_the_environment() -> None:
    reading = {relative(path) for path in sources("zimage") if uses(path, "os.environ", "os.getenv")}

    # ONNX Runtime's telemetry can be switched off only by the environment at its import.
    assert reading <= {"zimage/cli/main.py", "zimage/faces/onnx_runtime.py", HANDS_ON}


def test_tasks_and_flows_take_settings_from_one_place() -> None:
    reading = {relative(path) for path in sources("tasks", "flows") if uses(path, "os.environ", "os.getenv")}

    # A fork of the fork server takes over an environment; the shell command switches telemetry off; a server that runs
    # its own database names it to Prefect.
    own = {"tasks/workspace/fork_server.py", "flows/__main__.py", "flows/server/__main__.py"}
    assert reading == {"tasks/settings.py", *own}


def test_only_the_doctor_opens_a_connection() -> None:
    importing = {relative(path) for path in sources("zimage") if imported_by(path) & NETWORK}

    assert importing <= {"zimage/cli/doctor.py", HANDS_ON}


def test_only_the_fork_server_calls_dvc() -> None:
    calling = {
        relative(path) for path in sources(*PACKAGES) if re.search(r"dvc\.cli|[\"']dvc[\"']", path.read_text("utf-8"))
    }

    assert calling == {"tasks/workspace/fork_server.py", "zimage/cli/doctor.py"}  # the doctor asks for its version only


def test_stages_read_no_unsafe_formats() -> None:
    for path in sources(*PACKAGES):
        assert not imported_by(path) & {"pickle", "shelve", "marshal", "dill", "joblib"}, relative(path)
        assert not uses(path, *UNSAFE_YAML), relative(path)


def test_flows_evaluate_their_annotations() -> None:
    """`from __future__ import annotations` breaks pydantic parameters of served flows."""
    for path in sources("flows"):
        assert "__future__" not in imported_by(path), relative(path)


def test_a_flow_takes_one_parameter_that_forbids_extras() -> None:
    for name in ("personalize", "prepare", "learn", "score", "publish", "promote", "forget", "retrain"):
        flow = getattr(importlib.import_module(f"flows.{name}"), name)
        (parameter,) = flow.fn.__annotations__.items() - {("return", flow.fn.__annotations__["return"])}
        assert parameter[0] == "spec"
        assert parameter[1].model_config["extra"] == "forbid"


def test_the_wheel_contains_zimage_only() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))

    assert project["tool"]["setuptools"]["packages"]["find"]["include"] == ["zimage*"]


def test_constraints_pin_every_dependency_of_the_project() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    wanted = {canonical(re.split(r"[\[<>=;]", name)[0]) for name in [*project["dependencies"], *extras]}
    lines = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()

    assert wanted <= {canonical(line.partition("==")[0]) for line in lines if "==" in line}


def test_every_package_s_licence_is_told() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["pipeline"], *extras["sign"], *extras["8bit"], "insightface"]
    rows = (PROJECT / "infra" / "licences.md").read_text(encoding="utf-8").splitlines()

    told = {canonical(row.split("|")[1].split("(")[0].strip()) for row in rows if row.startswith("| ")}
    assert {canonical(re.split(r"[\[<>=;]", name)[0]) for name in wanted} <= told


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_hooks_say_what_make_test_says() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    hooks = [hook["entry"] for repo in yaml_of(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]]

    for tool in ("ruff check", "ruff format", "lint-imports", "mypy"):
        assert f"$(BIN)/{tool}" in makefile
        assert any(f".venv/bin/{tool}" in entry for entry in hooks)


def test_private_names_of_other_libraries_are_those_of_the_list() -> None:
    text = (PROJECT / "infra" / "private-names.md").read_text(encoding="utf-8")
    rows = [row.split("|") for row in text.splitlines() if row.startswith("| ") and "`" in row]
    listed = {(cells[3].strip(" `"), name) for cells in rows for name in re.findall(r"`([^`]+)`", cells[4])}
    tried = {f"{cells[1].strip()}=={cells[2].strip()}" for cells in rows}

    assert {(relative(path), name) for path in sources(*PACKAGES) for name in private_names(path)} == listed
    assert tried <= set((PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines())


def private_names(path: Path) -> Iterator[str]:
    """The names with an underscore, and the parts of Prefect's server, that a file takes of another library."""
    tree, imported = ast.parse(path.read_bytes()), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name.split(".")[0]: alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] not in PACKAGES:
            if "._" in node.module or node.module.startswith("prefect.server"):
                yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name.startswith("_"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[a-z]", node.attr):
            name = ast.unparse(node)
            if re.fullmatch(r"[\w.]+", name) and imported.get(name.split(".")[0]) not in {
                None,
                "os",
                "self",
                *PACKAGES,
            }:
                yield name
