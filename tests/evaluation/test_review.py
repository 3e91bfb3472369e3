"""A person's review: the page in a real browser, the file that it saves, and what the gate makes of it."""

import base64
import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from tests.evaluation.photos import others, small, views
from tests.evaluation.test_truth import GATE, rows
from tests.evaluation.tiny_lora import write_tiny_lora
from zimage.captions.subject import Subject
from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.evaluation.figures import UNMEASURED, Figures
from zimage.evaluation.gate import GateParams, judge
from zimage.evaluation.intervals import Estimate
from zimage.evaluation.report.results import Findings, Sampled
from zimage.evaluation.report.review_page import PAGE, write_review
from zimage.evaluation.review import (
    FORMAT,
    ITEMS,
    Answers,
    Item,
    cohens_kappa,
    identity_of,
    parsed_answers,
    review_of,
    reviewed,
    summary_line,
    with_review,
)
from zimage.evaluation.score.impostors import Impostor, Impostors
from zimage.evaluation.score.picture import PictureScorer
from zimage.evaluation.score.reals import Reals
from zimage.evaluation.select.checkpoint_selection import Selection
from zimage.faces.engine import Engine
from zimage.photos.pictures import write_png

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PICTURES = 6
GOOD = Estimate(0.9, 0.85, 0.95, 48)
ADA = Subject(trigger="ohzw", class_noun="woman")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("NO BROWSER, so nothing was reviewed; `apt-get install chromium` and run again")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def evaluate(reals: Reals, judge_of: PictureScorer, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluate folder with its review: six pictures of the person, four held-out photos, and three other people."""
    folder = tmp_path_factory.mktemp("review") / "evaluate"
    pictures = small(views(PICTURES, seed=77))
    for number, picture in enumerate(pictures):
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        write_png(folder / "pictures" / f"{number}.png", picture)
    write_review_of(folder, findings(folder, rows(pictures, judge_of, engine), judge_of), reals, seed=0)
    return folder


@pytest.fixture(scope="module")
def judge_of(judge: PictureScorer) -> PictureScorer:
    return judge


@pytest.fixture
def items(evaluate: Path) -> list[Item]:
    return read_rows(evaluate / ITEMS, Item)


def findings(folder: Path, scored: list[Any], judge_of: PictureScorer) -> Findings:
    lora = folder.parent / "lora.safetensors"
    write_tiny_lora(lora, seed=1)
    chosen = Selection([], [], {}, scored, [], None, None, lora, 1.0)
    strangers = [Impostor(f"group/{n}.jpg", each, 0.8 + n / 100, None, False) for n, each in enumerate(small(others()))]
    unmeasured = Figures(**{each.name: UNMEASURED for each in fields(Figures) if each.name != "leaks"}, leaks={})
    sampled = Sampled(128, 16, 0.0, 1.0, packaged=True, precision="float32")
    return Findings(
        outcome=chosen, figures=unmeasured, judgement=judge(unmeasured, GATE, embedded=True), picture_scorer=judge_of,
        impostors=Impostors(strangers[:3]), absent=[], suite="demo", base="sha256:0", copy_correlation=0.95,
        sampled=sampled, advice=[], coaching=[],
    )  # fmt: skip


def write_review_of(folder: Path, found: Findings, reals: Reals, *, seed: int) -> None:
    write_review(folder, found, reals, seed=seed, picture_px=128, subject=ADA)


def honest(items: list[Item], unsure: int = 0) -> Answers:
    """What somebody answers who knows the person, and is not sure of the first pictures."""
    pictures = [item.id for item in items if item.kind == "picture"]
    said = {item.id: "no" if item.kind == "impostor" else "yes" for item in items}
    return answered(items, said | dict.fromkeys(pictures[:unsure], "unsure"))


def answered(items: list[Item], said: dict[str, str]) -> Answers:
    return Answers.model_validate({"format": FORMAT, "review": identity_of(items), "answers": said})


def metrics_with(limit: float | None) -> dict[str, Any]:
    """What metrics.json holds of an evaluation in which every other rule holds, by a strong engine."""
    at_most = ("clip_drop", "copied", "nearest_share", "leak_rise", "shared_session")
    values = {each.name: GOOD for each in fields(Figures) if each.name not in ("leaks", "reviewed", *at_most)}
    good = Figures(**values, **dict.fromkeys(at_most, Estimate(0.0, 0.0, 0.1, 48)), leaks={})
    limits = dict.fromkeys(GateParams.model_fields, 0.5) | {"reviewer_same_rate_min": limit}
    judgement = judge(good, GateParams(**limits), embedded=False)
    return {
        "verdict": judgement.verdict,
        "why": judgement.why,
        "gate": {rule.name: rule.model_dump(exclude={"name"}) for rule in judgement.rules},
        "engine": {"embedded": False},
        "estimates": {},
    }


def open_uri(src: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2])))


def question(page: Page) -> str:
    return str(page.text_content("#heading"))


def test_the_page_is_answered_by_keys_keeps_answers_over_a_reload_and_saves_what_the_gate_reads(
    evaluate: Path, items: list[Item], browser: Any, tmp_path: Path
) -> None:
    context = browser.new_context(offline=True, accept_downloads=True)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((evaluate / PAGE).as_uri())
    keys = {"picture": "y", "real": "y", "impostor": "n"}

    page.keyboard.press("n")  # wrong, and taken back
    assert question(page) == f"Picture 2 of {len(items)}"
    page.keyboard.press("z")
    assert question(page) == f"Picture 1 of {len(items)}"
    assert "0 of" in str(page.text_content("#status"))
    for item in items[:5]:
        page.keyboard.press(keys[item.kind])
    page.reload()
    assert question(page) == f"Picture 6 of {len(items)}"
    assert f"5 of {len(items)} answered" in str(page.text_content("#status"))
    page.keyboard.press("ArrowLeft")
    assert (
        page.get_attribute(f"[data-answer={'no' if items[4].kind == 'impostor' else 'yes'}]", "aria-pressed") == "true"
    )
    page.keyboard.press("ArrowRight")
    for item in items[5:]:
        page.keyboard.press(keys[item.kind])
    first = next(number for number, item in enumerate(items) if item.kind == "picture")
    for _ in range(len(items) - 1 - first):
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("u")
    with page.expect_download() as download:
        page.keyboard.press("s")
    saved = tmp_path / download.value.suggested_filename
    download.value.save_as(saved)
    context.close()

    assert errors == [] and saved.name == "review.json"
    assert parsed_answers(saved.read_bytes(), "review.json") == honest(items, unsure=1)
    found = with_review(metrics_with(0.5), evaluate, saved)
    assert found["verdict"] == "pass"
    assert found["estimates"]["reviewed"]["value"] == found["gate"]["reviewer_same_rate_min"]["value"] == 5 / 6
    assert found["review"]["kappa"] == 1
    assert with_review(metrics_with(0.9), evaluate, saved)["verdict"] == "fail"


def test_the_page_mixes_in_controls_loads_nothing_and_does_not_disclose_them(evaluate: Path, items: list[Item]) -> None:
    page = (evaluate / PAGE).read_text(encoding="utf-8")

    assert sorted(item.kind for item in items) == sorted(["picture"] * PICTURES + ["real"] * 4 + ["impostor"] * 3)
    assert not any(word in page for word in ("impostor", "group/0.jpg", "pictures/0.png", "holdout0"))
    assert "http://" not in page and "https://" not in page and "<script src" not in page
    assert all(page.count(item.id) == 1 for item in items)
    sizes = [open_uri(src).size for src in re.findall(r'"src": "([^"]+)"', page)]
    assert len(sizes) == len(items) and set(sizes) == {(128, 128)}


def test_the_seed_draws_the_order(
    evaluate: Path, items: list[Item], reals: Reals, judge_of: PictureScorer, engine: Engine
) -> None:
    found = findings(evaluate, rows(small(views(PICTURES, seed=77)), judge_of, engine), judge_of)
    orders = {}
    for seed in (0, 1):
        write_review_of(evaluate, found, reals, seed=seed)
        orders[seed] = read_rows(evaluate / ITEMS, Item)
    write_review_of(evaluate, found, reals, seed=0)

    assert orders[0] == items != orders[1]
    assert [item.kind for item in items] != sorted(item.kind for item in items)
    assert identity_of(orders[0]) == identity_of(orders[1])


def test_a_reviewer_who_sees_the_person_everywhere_is_not_usable(items: list[Item]) -> None:
    review = review_of(items, answered(items, {item.id: "yes" for item in items}))

    assert review.unusable == (
        "The review is not usable: 3 of 3 photos of other people were not recognised; let somebody answer who knows "
        "the person well."
    )
    found = reviewed(metrics_with(0.5), review)
    assert found["verdict"] == "provisional"
    assert "Could not be measured: same person to a reviewer, of all pictures." in found["why"]
    assert found["why"].endswith(review.unusable) and summary_line(found["review"]) == review.unusable


def test_a_reviewer_who_does_not_know_the_person_is_not_usable(items: list[Item]) -> None:
    real = [item.id for item in items if item.kind == "real"]
    said = honest(items).answers | dict.fromkeys(real[:1], "unsure")

    assert "1 of 4 real photos of the person were not recognised" in review_of(items, answered(items, said)).unusable


def test_answers_that_are_not_complete_or_of_other_pictures_do_not_count(items: list[Item]) -> None:
    said = dict(honest(items).answers)
    said.pop(items[0].id)
    assert "1 of 13 pictures have no answer" in review_of(items, answered(items, said)).unusable
    assert "of other pictures than the evaluation's" in review_of(items[1:], honest(items)).unusable
    only_real = [item for item in items if item.kind != "impostor"]
    assert "set evaluate.impostors to packaged" in review_of(only_real, honest(only_real)).unusable


def test_without_answers_the_verdict_is_the_evaluations_and_a_rule_that_is_on_is_open(tmp_path: Path) -> None:
    assert with_review(metrics_with(None), tmp_path, tmp_path / "review.json") == metrics_with(None)
    assert metrics_with(None)["verdict"] == "pass"
    assert metrics_with(0.7)["verdict"] == "provisional"


def test_a_file_that_is_no_review_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"other\.json is not what review\.html saves \(answers\.a: .*open review\.html"
    ):
        parsed_answers(
            json.dumps({"format": FORMAT, "review": "0", "answers": {"a": "perhaps"}}).encode(), "other.json"
        )
    with pytest.raises(InputError, match=r"is not what review\.html saves \(the file: "):
        parsed_answers(b"\xff\xfe", "other.json")


def test_agreement_counts_pictures_by_prompt_and_kappa_has_the_controls_too(items: list[Item]) -> None:
    review = review_of(items, honest(items, unsure=2))

    assert (review.same.value, review.same.n, review.unsure) == (4 / 6, 6, 2)
    assert (review.agreement.value, review.agreement.n) == (1, 4)
    assert (review.kappa, review.compared) == (1, 4 + 4 + 3)
    assert review.controls == {"impostor": (3, 3), "real": (4, 4)}
    assert summary_line(asdict(review)).startswith(
        "4 of 6 pictures are the person to a reviewer, who agrees with the face engine in 100 % (95 % interval"
    )


def test_kappa_is_cohens() -> None:
    table = [(True, True)] * 20 + [(True, False)] * 5 + [(False, True)] * 10 + [(False, False)] * 15
    assert cohens_kappa(table) == pytest.approx(0.4)  # by chance .5, observed .7
    assert cohens_kappa([(True, True)] * 9) is None
    assert cohens_kappa([]) is None
