"""The flow `score` on a real server: real photos, a LoRA and finished pictures, with a base of the real classes."""

import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.__main__ import main
from flows.score import score
from flows.spec import ScoreSpec
from tasks.settings import from_environment
from tasks.store.s3 import open_store
from tasks.transfer.state import State, state_key
from tasks.workspace.subject import Choices
from tests.agreed import agreed
from tests.evaluation.photos import of_another, views
from tests.evaluation.suites import SUITE
from tests.evaluation.tiny_lora import write_tiny_lora
from zimage.consent import read_consent
from zimage.core.errors import InputError
from zimage.model.base import Base

SMALL = {
    "detect.duplicates.same_shot": None,
    "evaluate.second_engine": None,
    "evaluate.impostors": None,
    "evaluate.sampling": {"side_px": 64, "steps": 1, "guidance_scale": 0.0},
    "evaluate.resampling.resamples": 200,
    "evaluate.gate.second_engine_rate_min": None,
}


@dataclass(frozen=True)
class Place:
    """Where things are, and what is asked of the flow but for the subject and its consent."""

    folder: Path
    given: dict[str, Any]

    def results(self, subject: str) -> list[Path]:
        return sorted(self.folder.glob(f"store/subjects/{subject}/pages/score-*"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base, prefect_server: None) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("score")
    for name, pictures in (("photos", views(6, seed=7)), ("theirs", of_another(2, seed=4))):
        (folder / name).mkdir()
        for number, picture in enumerate(pictures):
            Image.fromarray(picture).resize((512, 512)).save(folder / name / f"{number}.png")
    (folder / "suite.yaml").write_text(SUITE, encoding="utf-8")
    write_tiny_lora(folder / "ada.safetensors", seed=1)
    values = [f"{key}={json.dumps(value)}" for key, value in SMALL.items()]
    given = {
        "photos": str(folder / "photos"),
        "loras": [f"{folder / 'ada.safetensors'}:0.5"],
        "bases": [tiny_base.model],
        "engine": "dlib",
        "class_noun": "woman",
        "trigger": "zmkl",
        "seeds": 1,
        "values": [*values, f"evaluate.suite={folder / 'suite.yaml'}"],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIMAGE_WORKSPACES", str(folder / "workspaces"))
        patch.setenv("ZIMAGE_STORE", str(folder / "store"))
        yield Place(folder, given)


def at_shell(subject: str, given: dict[str, Any], *more: str) -> tuple[int, str, str]:
    flags = {"values": "--set", "loras": "--lora", "bases": "--base"}
    options = [
        f"{flags.get(name, '--' + name.replace('_', '-'))}={each}"
        for name, value in given.items()
        for each in (value if isinstance(value, list) else [value])
    ]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["score", "--subject", subject, *options, *more])
    return code, out.getvalue(), err.getvalue()


def artifact(key: str) -> Any:
    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


def test_scores_lie_in_the_store_and_in_the_ui_and_are_forgotten_with_the_person(place: Place) -> None:
    consent = ["--consent", str(agreed(place.folder, "ada"))]
    code, out, err = at_shell("ada", place.given, "--pictures", str(place.folder / "theirs"), "--blind", *consent)

    assert code == 0, err
    (results,) = place.results("ada")
    found = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    assert list(found["results"]) == ["ada", "base", "theirs"]
    assert found["results"]["ada"]["strength"] == 0.5 and found["results"]["ada"]["verdict"] == "fail"
    assert {"score.html", "scores.csv", "differences.csv", "blind.html", "blind_key.json"} <= {
        path.name for path in results.iterdir()
    }
    assert out.splitlines()[: len(found["says"])] == found["says"]
    assert f"page     {(results / 'score.html').as_uri()}" in out
    (table,) = artifact("ada-score")
    rows = json.loads(table.data)
    assert [(row["what"], row["verdict"]) for row in rows] == [("ada", "fail"), ("base", ""), ("theirs", "")]
    (page,) = artifact("ada-score-page")
    assert found["says"][0] in page.data and (results / "score.html").as_uri() in page.data
    workspace = place.folder / "workspaces" / "ada"
    here = [path.relative_to(workspace).parts[:2] for path in workspace.rglob("*.png")]
    assert set(here) == {("data", ".score.cache")}  # generated pictures; no real photo stays on the machine

    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["forget", "--subject", "ada", "--delete"]) == 0
    assert not workspace.exists() and not place.results("ada")
    assert not artifact("ada-score") and not artifact("ada-score-page")


def test_a_machine_of_a_pool_finds_the_consent_in_the_state_and_refuses_without(place: Place) -> None:
    given = {**place.given, "loras": [], "pictures": [str(place.folder / "theirs")], "bases": []}
    with pytest.raises(InputError, match="zoe has no consent yet; give its file with --consent"):
        score(ScoreSpec(subject="zoe", placement="pools", **given))
    with pytest.raises(InputError, match="is the consent of 'ada' and not of 'zoe'"):
        score(ScoreSpec(subject="zoe", placement="pools", consent=str(agreed(place.folder, "ada")), **given))
    assert not place.results("zoe")
    state = State(
        version=1,
        writer="prepare",
        choices=Choices(preset="tiny", base=None, values={}),
        sources={},
        inputs={},
        lock="schema: '2.0'\nstages: {}\n",
        consent=read_consent(agreed(place.folder, "zoe")),
    )
    open_store(from_environment().store).compare_and_swap(state_key("zoe"), state.model_dump_json().encode(), None)

    scored = score(ScoreSpec(subject="zoe", placement="pools", **given))

    (results,) = place.results("zoe")
    assert scored.key == results.relative_to(place.folder / "store").as_posix()
    assert scored.says == ["theirs: same person in 0% [0%, 66%] of 2 pictures."]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"photos": ""}, "Real photos of the person are needed to score anything"),
        ({"photos": "nowhere"}, "There are no photos at nowhere"),
        ({"consent": ""}, "eve has no consent yet; give its file with --consent"),
    ],
)
def test_a_mistake_at_the_shell_is_refused_before_a_run_exists(
    place: Place, changes: dict[str, str], said: str
) -> None:
    given = {**place.given, "consent": str(agreed(place.folder, "eve")), **changes}

    code, _, err = at_shell("eve", {name: value for name, value in given.items() if value})

    assert code == 2 and err.startswith(f"flows: {said}")
    assert not (place.folder / "workspaces" / "eve").exists()


def test_what_the_scoring_refuses_is_the_refusal_of_the_run(place: Place) -> None:
    (place.folder / "broken").mkdir()
    (place.folder / "broken" / "a.png").write_text("no picture", encoding="utf-8")
    pictures = ["--pictures", str(place.folder / "broken")]

    code, _, err = at_shell("eve", place.given, *pictures, "--consent", str(agreed(place.folder, "eve")))

    assert code == 2
    assert err.splitlines()[-2].startswith("flows: 1 of the 1 pictures in ")
    assert err.splitlines()[-1] == "flows: The first is a.png."
