import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.evaluation.photos import DLIB, Picture, others, small, views, write_detect
from tests.evaluation.tiny_clip import write_tiny_clip
from tests.evaluation.tiny_lora import write_tiny_lora
from tests.faces.tiny_pack import write_pack
from zimage.captions.rows import CaptionRow
from zimage.captions.subject import Subject
from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows, write_rows
from zimage.evaluation.generate.image_cache import ImageCache, Sampling
from zimage.evaluation.generate.suite import halves, read_suite
from zimage.evaluation.protocol import PROTOCOL_VERSION
from zimage.evaluation.score.clip import ClipParams
from zimage.evaluation.select.scorer import Asked, asked_of_base, asked_of_lora
from zimage.evaluation.wording import unbroken
from zimage.faces.engine import EngineParams, open_engine
from zimage.faces.insightface_engine import identify_pack
from zimage.model import device
from zimage.model.base import Base
from zimage.model.pinned import identity_of
from zimage.photos.cache import cache_of
from zimage.photos.pictures import read_rgb
from zimage.photos.rows import CropRow
from zimage.stages.evaluate import EvaluateParams, evaluate, out_of_memory_explained

PARAMS = Path(__file__).parents[2] / "params.yaml"
ADA = Subject(trigger="ohzw", class_noun="woman")
SUITE = """prompts:
  - {id: near-1, kind: likeness, aspect: near, language: en, text: "a photo of {subject}, close-up of the face"}
  - {id: near-2, kind: likeness, aspect: near, language: zh, text: "一张{subject}的照片，面部特写"}
  - {id: far-1, kind: likeness, aspect: far, language: en, text: "a photo of {subject}, head and shoulders"}
  - {id: far-2, kind: likeness, aspect: far, language: en, text: "a photo of {subject} on a beach"}
  - {id: leak-1, kind: leak_class, aspect: leak, language: en, text: "a photo of {class}, close-up of the face"}
  - {id: leak-2, kind: leak_two, aspect: leak, language: en, text: "a photo of {subject} and {other}"}
"""


@pytest.fixture(scope="module")
def detect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate") / "detect"
    return write_detect(folder, open_engine(DLIB), training=views(4, seed=1), holdout=views(3, seed=2))


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return after_training(tmp_path)


@pytest.fixture
def params(workspace: Path) -> EvaluateParams:
    return cheap_params(workspace)


@pytest.fixture(scope="module")
def finished(detect: Path, tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose evaluation found the person in the LoRA's pictures, and strangers in the base model's."""
    workspace = after_training(tmp_path_factory.mktemp("finished"))
    params = cheap_params(workspace)
    hand_in(workspace, params, tiny_base, small(views(9, seed=50)), small(others()))
    gate = params.gate.model_copy(update={"copy_rate_max": None, "same_person_rate_low_min": 0.3})
    run(detect, workspace, params.model_copy(update={"gate": gate}), tiny_base)
    return workspace


def after_training(workspace: Path) -> Path:
    """Write what training leaves: a LoRA, an earlier checkpoint and a loss curve; and a small suite."""
    write_tiny_lora(workspace / "train" / "lora.safetensors", seed=1)
    write_tiny_lora(workspace / "train" / "checkpoints" / "step-000010.safetensors", seed=2)
    losses = "".join(f"{step},{1 / step:.4f}\n" for step in range(1, 21))
    (workspace / "train" / "loss.csv").write_text(f"step,loss\n{losses}", encoding="utf-8")
    (workspace / "caption").mkdir()
    caption = "a photo of ohzw woman, head upright, in warm colours"
    row = CaptionRow(file="train/0.png", captions=[caption], captioner="template", rewrites=[])
    write_rows(workspace / "caption" / "captions.jsonl", [row] * 4)
    (workspace / "suite.yaml").write_text(SUITE, encoding="utf-8")
    return workspace


def cheap_params(workspace: Path) -> EvaluateParams:
    """Return the demo's params with fewer and smaller pictures."""
    section = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))["evaluate"]
    section |= {"suite": str(workspace / "suite.yaml"), "second_engine": None, "impostors": None, "clip": None}
    section["engine"], section["gate"]["second_engine_rate_min"] = DLIB.model_dump(), None
    section["sampling"] = {"side_px": 64, "steps": 2, "guidance_scale": 0.0}
    section["seeds"] = {"base": 1, "selection": 1, "test": 2, "leaks": 1}
    section["sweep"] = {"checkpoints": 1, "strengths": [0.5, 1.0], "reference_strength": 1.0}
    return EvaluateParams.model_validate(section)


def run(detect: Path, workspace: Path, params: EvaluateParams, base: Base) -> dict[str, object]:
    folders = [workspace / name for name in ("caption", "train", "evaluate")]
    evaluate(detect, *folders, params=params, base=base, subject=ADA)
    found: dict[str, object] = json.loads((workspace / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    return found


def scores(workspace: Path) -> list[dict[str, str]]:
    with (workspace / "evaluate" / "scores.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def all_asked(workspace: Path, params: EvaluateParams) -> list[Asked]:
    """Every picture that an evaluation may ask for."""
    prompts = read_suite(params.suite)
    sides = halves(prompts)
    loras = sorted((workspace / "train").rglob("*.safetensors"))
    return asked_of_base(prompts, sides, 1, subject=ADA) + [
        asked
        for lora in loras
        for strength in params.sweep.strengths
        for asked in asked_of_lora(prompts, "test", 2, subject=ADA, lora=lora, strength=strength)
    ]


def hand_in(workspace: Path, params: EvaluateParams, base: Base, lora: list[Picture], stranger: list[Picture]) -> None:
    """Put pictures where the stage keeps those it has made: as if the models had drawn them."""
    image_cache = ImageCache(cache_of(workspace / "evaluate"), base.identity, Sampling(**params.sampling.model_dump()))
    for number, asked in enumerate(all_asked(workspace, params)):
        pictures = stranger if asked.request.lora is None else lora
        image_cache.keep(asked.request, pictures[number % len(pictures)])


def test_a_lora_that_draws_the_person_gets_a_provisional_verdict(finished: Path) -> None:
    found = json.loads((finished / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    assert (found["verdict"], found["face_found_rate"], found["same_person_rate"]) == ("provisional", 1, 1)
    assert (found["same_person_rate_of_all"], found["base_same_person_rate"]) == (1, 0)
    assert {"engine_id", "threshold", "model_sha256", "holdout_photos"} <= set(found["engine"])
    has_units = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    assert found["sampled"]["precision"] == ("bfloat16" if has_units else "float32")
    assert found["chosen"]["file"] in {"lora.safetensors", "step-000010.safetensors"}
    assert found["protocol"] == PROTOCOL_VERSION
    page = (finished / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert f"<td>evaluation protocol</td><td>{PROTOCOL_VERSION}</td>" in page


def test_the_report_is_one_page_without_anything_from_elsewhere_and_shows_every_score(finished: Path) -> None:
    page = (finished / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert "provisional" in page and "At a glance" in page and "Which strength" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|@import|<script", page)
    reported = [row for row in scores(finished) if row["half"] == "test" and row["weights"] == "lora"]
    assert all(f"<figcaption>{float(row['distance']):.2f}</figcaption>" in page for row in reported)


def test_the_page_for_a_release_shows_all_that_was_made_and_no_real_photo(finished: Path) -> None:
    pages = {
        name: (finished / "evaluate" / name).read_text(encoding="utf-8") for name in ("report.html", "release.html")
    }
    shown = {
        name: {(state, src) for state, src in re.findall(r'<figure class="(\w+)">.*?<img src="([^"]+)"', page)}
        for name, page in pages.items()
    }

    real = {src for state, src in shown["report.html"] if state == "real"}
    assert len(real) >= 7  # four to train with, three held out
    assert shown["release.html"] == {each for each in shown["report.html"] if each[0] != "real"}
    assert not any(src in pages["release.html"] for src in real)
    assert set(re.findall(r"data:[^\"']+", pages["release.html"])) == {src for _, src in shown["release.html"]}


def test_a_rule_that_is_off_stands_in_the_report_with_what_it_would_have_judged(finished: Path) -> None:
    found = json.loads((finished / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    page = (finished / "evaluate" / "report.html").read_text(encoding="utf-8")
    rows = {row[0]: row[1:] for row in (re.findall("<td[^>]*>(.*?)</td>", line) for line in page.splitlines()) if row}

    copied, leaked = found["gate"]["copy_rate_max"], found["gate"]["leak_rise_max"]
    assert (copied["verdict"], copied["value"], copied["n"]) == ("off", found["copy_rate"], 4)
    assert (leaked["verdict"], leaked["value"], leaked["n"]) == ("off", 1, 1)
    limit, value, _interval, n, mark = rows["Copies of training photos"]
    assert (limit, value, n) == (
        "not a rule here (usually 2\u00a0%)",
        f"{round(4 * copied['value'])}\u00a0of\u00a04",
        "4",
    )
    limit, value, _interval, n, mark = rows["The subject appears uncalled, above the base model"]
    assert (limit, value, n) == ("not a rule here (usually 10\u00a0%)", "1\u00a0of\u00a01", "1")
    assert "off, would break" in mark
    assert "the subject appears uncalled, above the base model (1 of 1)" in found["why"]
    assert unbroken(found["why"]) in html.unescape(page)
    assert len([row for row in rows.values() if len(row) == 5]) >= 10


def test_what_to_change_stands_in_metrics_and_report_and_in_no_release(finished: Path) -> None:
    found = json.loads((finished / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    report, release = (
        (finished / "evaluate" / name).read_text(encoding="utf-8") for name in ("report.html", "release.html")
    )
    tips = {tip["rule"]: tip for tip in found["coaching"]}

    assert (tips["few_photos"]["number"], tips["few_sessions"]["number"]) == (4, 1)
    assert tips["repeated_captions"]["number"] == 2
    assert "Every caption says “head upright”, “in warm colours”, so" in tips["repeated_captions"]["sentence"]
    assert (tips["leak"]["number"], tips["leak"]["limit"]) == (found["estimates"]["leak_rise"]["value"], 0.1)
    assert tips["one_picture"]["number"] < tips["one_picture"]["limit"]
    assert report.count("<h2>What to change</h2>") == 1
    assert "Only 4 photos were trained on" in report and "head upright" in report
    assert "What to change" not in release and "Every caption says" not in release


def test_a_limit_that_was_changed_is_named_at_the_rule_and_at_the_verdict(finished: Path) -> None:
    found = json.loads((finished / "evaluate" / "metrics.json").read_text(encoding="utf-8"))
    page = (finished / "evaluate" / "report.html").read_text(encoding="utf-8")

    assert "Changed limits: same person, lower end of interval at least 30 % (usually 55 %)." in found["why"]
    assert "at least 30\u00a0% (changed; usually 55\u00a0%)" in page


def test_few_pictures_are_counted_and_not_written_in_percent(finished: Path) -> None:
    page = (finished / "evaluate" / "report.html").read_text(encoding="utf-8")

    values = re.findall(r'<div class="value">(.*?)</div>\n<div class="says">(.*?)</div>', page)
    assert ("4\u00a0of\u00a04", "of the pictures show a face") in values
    assert ("1\u00a0of\u00a01", "asked for the class noun alone show the person uncalled") in values
    assert "the subject appears uncalled in 1 of 1" in page


def test_selection_and_test_share_no_picture(finished: Path) -> None:
    lora = [row for row in scores(finished) if row["weights"] == "lora"]
    prompts = {half: {row["prompt"] for row in lora if row["half"] == half} for half in ("selection", "test")}
    assert prompts["selection"] and prompts["test"] and not prompts["selection"] & prompts["test"]


def test_an_untrained_lora_fails_and_is_a_result_nonetheless(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base
) -> None:
    losses = "".join(f"{step},{1 / step:.4f}\n" for step in range(1, 151))
    (workspace / "train" / "loss.csv").write_text(f"step,loss\n{losses}", encoding="utf-8")
    found = run(detect, workspace, params, tiny_base)
    assert (found["verdict"], found["same_person_rate_of_all"]) == ("fail", 0)
    advice = str(found["advice"])
    assert "The 4 training photos are nearly one and the same picture" in advice
    assert "Only 150 steps were trained; train with `--steps 1200`" in advice
    page = (workspace / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert "<h3>What to do next</h3>" in page
    assert "<li>Only 150\u00a0steps were trained; train with <code>--steps 1200</code> or more.</li>" in page
    assert "`" not in page and not re.search(r"\d (%|px\b|steps\b)", page)
    rows = scores(workspace)
    cells = {(row["weights"], row["checkpoint"], row["strength"]) for row in rows}
    assert cells == {
        ("base", "", "0.0"), ("lora", "step-000010.safetensors", "1.0"), ("lora", "lora.safetensors", "1.0"),
        ("lora", "step-000010.safetensors", "0.5"),
    }  # fmt: skip
    assert len(rows) == 4 + 2 + 3 * 2 + 2 * 2 + 2  # base, its leaks; three cells to choose by; test; leaks
    assert all((workspace / "evaluate" / row["file"]).is_file() for row in rows)
    assert all(row["engine"].startswith("dlib") and row["threshold"] == "0.6" for row in rows)

    before = {path.name: path.stat().st_mtime_ns for path in cache_of(workspace / "evaluate").iterdir()}
    stricter = params.gate.model_copy(update={"face_found_rate_min": 0.99})
    again = run(detect, workspace, params.model_copy(update={"gate": stricter}), tiny_base)
    assert {path.name: path.stat().st_mtime_ns for path in cache_of(workspace / "evaluate").iterdir()} == before
    assert again["gate"]["face_found_rate_min"]["limit"] == 0.99  # type: ignore[index]
    assert len(before) == len(rows)


def test_with_nothing_to_choose_from_all_prompts_report(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base
) -> None:
    hand_in(workspace, params, tiny_base, small(views(9, seed=50)), small(others()))
    sweep = params.sweep.model_copy(update={"checkpoints": 0, "strengths": [1.0]})
    found = run(detect, workspace, params.model_copy(update={"sweep": sweep}), tiny_base)
    assert found["estimates"]["same_of_all"]["n"] == 4 * 2  # type: ignore[index]
    assert "Which strength" not in (workspace / "evaluate" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def second_engine(tmp_path_factory: pytest.TempPathFactory) -> EngineParams:
    """A second engine that shares neither code, detector, weights nor metric with dlib."""
    pack = write_pack(tmp_path_factory.mktemp("packs") / "other", central=True)
    return EngineParams(
        name="insightface", pack=str(pack), identity=identify_pack(pack), min_score=0.5, max_distance=0.6
    )


def pinned_clip(workspace: Path, languages: list[str]) -> ClipParams:
    (workspace / "clip").mkdir()
    model = str(write_tiny_clip(workspace / "clip"))
    return ClipParams(model=model, identity=identity_of(model), languages=languages)


def test_weights_that_were_exchanged_under_the_same_name_are_refused_before_anything_is_drawn(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base, second_engine: EngineParams
) -> None:
    clip = pinned_clip(workspace, ["en"])
    weights = Path(clip.model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")

    with pytest.raises(InputError, match=r"evaluate\.clip\.identity pins sha256:.*restore the pinned files"):
        run(detect, workspace, params.model_copy(update={"clip": clip}), tiny_base)
    with pytest.raises(InputError, match=r"Nothing pins the model .* of evaluate\.clip,"):
        unpinned = clip.model_copy(update={"identity": None})
        run(detect, workspace, params.model_copy(update={"clip": unpinned}), tiny_base)
    with pytest.raises(InputError, match=r"the face pack .* of evaluate\.second_engine, .*identity to sha256:"):
        unpinned_pack = second_engine.model_copy(update={"identity": None})
        run(detect, workspace, params.model_copy(update={"second_engine": unpinned_pack}), tiny_base)
    assert not (workspace / "evaluate").exists()


def test_a_second_engine_that_is_the_first_again_is_refused(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base
) -> None:
    again = params.model_copy(update={"second_engine": params.engine.model_copy(update={"max_distance": 0.5})})
    with pytest.raises(InputError, match=r"second_engine is dlib, as evaluate\.engine is, so its agreement would show"):
        run(detect, workspace, again, tiny_base)


def test_two_independent_engines_judge_side_by_side_and_are_never_mixed(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base, second_engine: EngineParams
) -> None:
    hand_in(workspace, params, tiny_base, small(views(9, seed=50)), small(others()))
    clip = pinned_clip(workspace, ["en"])
    gate = params.gate.model_copy(update={"second_engine_rate_min": 0.75, "same_person_rate_low_min": 0.3})
    asked = {"second_engine": second_engine, "clip": clip, "impostors": "packaged", "gate": gate}
    found: dict[str, Any] = run(detect, workspace, params.model_copy(update=asked), tiny_base)

    assert (found["verdict"], found["gate"]["second_engine_rate_min"]["verdict"]) == ("provisional", "pass")
    first, second = found["engine"], found["second_engine"]
    assert (first["metric"], second["metric"]) == ("l2", "cosine")
    assert first["threshold"] == second["threshold"] == 0.6
    assert set(first["model_sha256"]).isdisjoint(second["model_sha256"])
    rows = scores(workspace)
    unseen = [row for row in rows if row["half"] == "leak" or (row["half"], row["weights"]) == ("selection", "lora")]
    assert unseen and {(row["second_distance"], row["second_same"]) for row in unseen} == {("", "")}
    seen = [row for row in rows if row not in unseen]
    assert all(row["second_distance"] and row["second_distance"] != row["distance"] for row in seen)
    assert {(row["engine"], row["second_engine"]) for row in rows} == {(first["engine_id"], second["engine_id"])}
    lora = [row for row in rows if row["half"] == "test" and row["weights"] == "lora"]
    assert {(row["same"], row["second_same"]) for row in lora} == {("1", "1")}
    assert (found["absent"], found["clip"], found["variety_by"]) == ([], "present", "clip")
    assert found["impostors"]["faces"] == 8 and found["impostors"]["same_person"] == 0
    page = (workspace / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert first["engine_id"] in page and "second, independent engine" in page
    assert f"{second['engine_id']}; 4 of 4 pictures are the person to it" in page
    assert "6 in insightface/t1.jpg" in page and "1 − cosine in CLIP" in page
    assert page.count('alt="another person, ') == 8
    release = (workspace / "evaluate" / "release.html").read_text(encoding="utf-8")
    assert "6 in insightface/t1.jpg" in release and "another person, " not in release


def test_a_second_engine_that_does_not_agree_breaks_its_rule_and_no_other(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base, second_engine: EngineParams
) -> None:
    hand_in(workspace, params, tiny_base, small(views(9, seed=50)), small(others()))
    gate = params.gate.model_copy(update={"second_engine_rate_min": 0.75, "same_person_rate_low_min": 0.3})
    strict = second_engine.model_copy(update={"max_distance": 0.01})
    found: dict[str, Any] = run(
        detect, workspace, params.model_copy(update={"second_engine": strict, "gate": gate}), tiny_base
    )
    assert found["verdict"] == "fail"
    assert [name for name, rule in found["gate"].items() if rule["verdict"] == "fail"] == ["second_engine_rate_min"]


def test_what_was_asked_for_and_is_absent_is_said_and_never_passes(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base, second_engine: EngineParams
) -> None:
    hand_in(workspace, params, tiny_base, small(views(9, seed=50)), small(others()))
    gate = params.gate.model_copy(update={"second_engine_rate_min": 0.75, "same_person_rate_low_min": 0.3})
    named = second_engine.model_copy(update={"pack": "no_such_pack"})
    clip = ClipParams(model="nobody/no-such-clip", languages=["en"])
    asked = params.model_copy(update={"second_engine": named, "clip": clip, "gate": gate})
    found: dict[str, Any] = run(detect, workspace, asked, tiny_base)

    assert found["absent"] == ["second face engine insightface no_such_pack", "CLIP nobody/no-such-clip"]
    assert (found["verdict"], found["second_engine"], found["clip"]) == ("provisional", None, "absent")
    assert found["gate"]["second_engine_rate_min"]["verdict"] == "not measured"
    page = (workspace / "evaluate" / "report.html").read_text(encoding="utf-8")
    assert "not on this machine: second face engine insightface no_such_pack, CLIP nobody/no-such-clip." in page
    wrong = named.model_copy(update={"pack": str(workspace / "nowhere")})
    with pytest.raises(InputError, match="There is no face pack"):
        run(detect, workspace, params.model_copy(update={"second_engine": wrong}), tiny_base)


def test_prompts_in_chinese_are_marked_as_such(finished: Path) -> None:
    page = (finished / "evaluate" / "report.html").read_text(encoding="utf-8")
    chinese = re.findall(r'<p lang="zh-Hans">([^<]*)</p>', page)
    assert chinese and all(re.search(r"[\u4e00-\u9fff]", text) for text in chinese)
    assert not re.search(r"<p>[^<]*[\u4e00-\u9fff]", page)


def test_a_strength_of_0_draws_the_base_models_own_pictures(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base
) -> None:
    (workspace / "suite.yaml").write_text(SUITE.replace("{subject}", "{class}"), encoding="utf-8")
    sweep = params.sweep.model_copy(update={"checkpoints": 0, "strengths": [0.0], "reference_strength": 0.0})
    run(detect, workspace, params.model_copy(update={"sweep": sweep}), tiny_base)
    files = {
        (row["weights"], row["prompt"], row["seed"]): workspace / "evaluate" / row["file"] for row in scores(workspace)
    }
    for prompt in ("near-1", "near-2", "far-1", "far-2"):
        assert np.array_equal(read_rgb(files["lora", prompt, "0"]), read_rgb(files["base", prompt, "0"]))


def test_a_lora_without_effect_loses_nothing_against_the_base_model_although_half_of_the_prompts_chose(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base
) -> None:
    (workspace / "suite.yaml").write_text(SUITE.replace("{subject}", "{class}"), encoding="utf-8")
    sweep = params.sweep.model_copy(update={"strengths": [0.0], "reference_strength": 0.0})
    seeds = params.seeds.model_copy(update={"base": 2})
    clip = pinned_clip(workspace, ["en", "zh"])
    asked = params.model_copy(update={"sweep": sweep, "seeds": seeds, "clip": clip})

    found: dict[str, Any] = run(detect, workspace, asked, tiny_base)["estimates"]  # type: ignore[assignment]

    assert found["clip_drop"] == {"value": 0, "low": 0, "high": 0, "n": 2 * 2}
    assert (found["variety_ratio"]["value"], found["variety_ratio"]["n"]) == (1, 2)
    assert (found["leak_rise"]["value"], found["leak_rise"]["n"]) == (0, 1)


def test_the_trigger_which_clip_does_not_know_counts_for_no_drop(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base
) -> None:
    hand_in(workspace, params, tiny_base, small(views(1, seed=50)), small(views(1, seed=50)))
    clip = pinned_clip(workspace, ["en", "zh"])

    found: dict[str, Any] = run(detect, workspace, params.model_copy(update={"clip": clip}), tiny_base)

    assert found["estimates"]["clip_drop"]["value"] == 0


def test_a_failed_run_leaves_the_old_report_and_keeps_the_pictures_it_made(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base
) -> None:
    write_tiny_lora(workspace / "train" / "lora.safetensors", seed=1, width=96)
    with pytest.raises(InputError, match="train it again"):
        run(detect, workspace, params, tiny_base)
    assert not (workspace / "evaluate").exists()
    assert list(cache_of(workspace / "evaluate").iterdir())


def test_an_absent_lora_is_told_with_the_remedy(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base
) -> None:
    (workspace / "train" / "lora.safetensors").unlink()
    with pytest.raises(InputError, match="run the train stage first"):
        run(detect, workspace, params, tiny_base)


def test_without_a_held_out_photo_nothing_is_scored(
    detect: Path, workspace: Path, params: EvaluateParams, tiny_base: Base
) -> None:
    crops = read_rows(detect / "crops.jsonl", CropRow)
    (workspace / "detect").mkdir()
    write_rows(workspace / "detect" / "crops.jsonl", [crop for crop in crops if crop.split == "train"])
    with pytest.raises(InputError, match="no held-out crop"):
        run(workspace / "detect", workspace, params, tiny_base)


def test_the_demos_params_are_valid() -> None:
    section = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))["evaluate"]
    assert EvaluateParams.model_validate(section).gate.same_person_rate_min is not None


def test_out_of_memory_names_the_pictures_that_fit(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "available_gb", lambda _: 0.1)
    with (
        pytest.raises(InputError, match=r"pictures of 256 x 256 px.*set evaluate\.sampling\.side_px to 160"),
        out_of_memory_explained(tiny_base, Sampling(256, 28, 3.0), loras_gb=0.0),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
