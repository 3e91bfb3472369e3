"""`zimage score`: real photos, LoRA files of several tools and finished pictures, on the real classes."""

import csv
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file, save_file

from tests.cli.test_main import zimage
from tests.evaluation.photos import DLIB, Picture, of_another, small, views
from tests.evaluation.suites import SUITE
from tests.evaluation.tiny_lora import write_tiny_lora
from tests.lora.dialect_files import write_dialect
from zimage.captions.subject import Subject
from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.core.section import read_section
from zimage.evaluation.generate.image_cache import ImageCache, Sampling
from zimage.evaluation.generate.image_cache import Request as CachedPicture
from zimage.evaluation.generate.suite import read_suite, with_subject
from zimage.evaluation.protocol import PROTOCOL_VERSION
from zimage.evaluation.review import Item, identity_of
from zimage.evaluation.select.scorer import asked_of_base, asked_of_lora
from zimage.lora.comfyui.workflow import Evaluated, Use, api_form, workflow
from zimage.lora.files.inspection import inspect_file
from zimage.lora.files.portable import Factors
from zimage.model.base import Base
from zimage.photos.cache import cache_of
from zimage.photos.pictures import jpeg_uri, read_rgb
from zimage.scoring.loras import given_loras
from zimage.scoring.score import Request, score
from zimage.stages.evaluate import EvaluateParams

ROOT = Path(__file__).parents[2]
ADA = Subject(trigger="zmkl", class_noun="woman")
SEEDS = 2
MADE = Evaluated("Tongyi-MAI/Z-Image-Turbo", "turbo", 64, 1, 0.0, 3.0)
USE = Use("eve.safetensors", 1.0, "", "zmkl", MADE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_base: Base) -> Path:
    """Photos of a person, cheap params, and two LoRAs: `ada` and, under kohya's names, `eve`."""
    folder = tmp_path_factory.mktemp("score")
    (folder / "photos").mkdir()
    for number, picture in enumerate(views(6, seed=7)):
        Image.fromarray(picture).resize((512, 512)).save(folder / "photos" / f"day{number}.png")
    (folder / "suite.yaml").write_text(SUITE, encoding="utf-8")
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["base"] = tiny_base.model_dump()
    params["detect"]["engine"] = DLIB.model_dump()
    params["evaluate"] |= {"suite": str(folder / "suite.yaml"), "second_engine": None, "impostors": None}
    params["evaluate"] |= {"engine": DLIB.model_dump(), "sampling": {"side_px": 64, "steps": 1, "guidance_scale": 0.0}}
    params["evaluate"]["gate"]["second_engine_rate_min"] = None
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    for name, seed in (("ada", 1), ("eve", 2)):
        write_tiny_lora(folder / f"{name}.safetensors", seed=seed)
        save_file(
            load_file(folder / f"{name}.safetensors"), folder / f"{name}.safetensors"
        )  # as from the web: no metadata
    return folder


def hand_in(place: Path, out: Path, pictures: dict[str, list[Picture]]) -> None:
    """Put pictures where those that were made are kept, as if the LoRAs and the base (`base`) had drawn them."""
    params = read_section(place / "params.yaml", "evaluate", EvaluateParams)
    base = read_section(place / "params.yaml", "base", Base)
    cache = ImageCache(cache_of(out) / "pictures", base.identity, Sampling(**params.sampling.model_dump()))
    prompts = read_suite(params.suite)
    for name, drawn in pictures.items():
        sides: dict[str, Any] = {prompt.id: "test" for prompt in prompts}
        asked = (
            asked_of_base(prompts, sides, SEEDS, subject=ADA)
            if name == "base"
            else asked_of_lora(prompts, "test", SEEDS, subject=ADA, lora=place / f"{name}.safetensors", strength=1.0)
        )
        for number, one in enumerate(asked):
            cache.keep(one.request, drawn[number % len(drawn)])


def request(place: Path, **changes: Any) -> Request:
    given: dict[str, Any] = {
        "photos": place / "photos", "consent": ROOT / "data" / "consent.yaml", "loras": [], "pictures": [],
        "class_noun": "woman", "trigger": "zmkl", "seeds": SEEDS, "params_file": place / "params.yaml",
    }  # fmt: skip
    return Request(**given | changes)


@pytest.fixture(scope="module")
def compared(place: Path) -> Path:
    """Two LoRAs compared: the pictures of `ada` show the person, those of `eve` another, those of the base too."""
    out = place / "compared"
    drawn = {"ada": small(views(8, seed=50)), "eve": small(of_another(8, seed=4)), "base": small(of_another(8, seed=5))}
    hand_in(place, out, drawn)
    files = [str(place / f"{name}.safetensors") for name in ("ada", "eve")]
    score(request(place, loras=files), out)
    return out


def test_the_lora_that_draws_the_person_is_said_to_keep_the_face_better(compared: Path) -> None:
    found = json.loads((compared / "metrics.json").read_text(encoding="utf-8"))
    assert re.match(r"ada keeps the face better than eve: \+0\.\d{3} \[\+0\.\d{3}, \+\d\.\d{3}\]", found["says"][0])
    assert found["results"]["ada"]["estimates"]["same_of_all"]["value"] > 0.9
    assert found["results"]["eve"]["estimates"]["same_of_all"]["value"] < 0.2
    assert found["results"]["ada"]["verdict"] == "provisional" and found["results"]["eve"]["verdict"] == "fail"
    assert found["results"]["ada"]["file"] == "ada.safetensors" and found["photos"] >= 4
    assert found["protocol"] == PROTOCOL_VERSION
    assert f"protocol {PROTOCOL_VERSION}." in (compared / "score.html").read_text(encoding="utf-8")
    assert "copied" not in found["results"]["ada"]["estimates"]  # nobody knows what it was trained on


def test_every_picture_is_shown_side_by_side_in_one_page_without_anything_from_elsewhere(compared: Path) -> None:
    page = (compared / "score.html").read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=\"(?!data:)|url\(|@import|<script", page)
    assert page.count("same person, 0.") >= 4 and "other person" in page
    with (compared / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 5 * SEEDS
    assert all((compared / row["file"]).is_file() for row in rows)


def test_a_lora_really_drawn_and_one_that_diffusers_cannot_read_as_it_is(place: Path, tmp_path: Path) -> None:
    tensors, end = load_file(place / "ada.safetensors"), ".lora_A.weight"
    names = [key.removesuffix(end).removeprefix("diffusion_model.") for key in tensors if key.endswith(end)]
    weights = {
        name: Factors(*(tensors[f"diffusion_model.{name}.lora_{side}.weight"] for side in "AB")) for name in names
    }
    write_dialect(tmp_path / "web.safetensors", "lora-transformer", weights, 1.0)
    assert inspect_file(tmp_path / "web.safetensors").diffusers != "all"
    out = tmp_path / "scored"
    done = zimage(
        *("score", place / "photos", out, "--consent", ROOT / "data" / "consent.yaml"),
        *("--lora", f"{place / 'ada.safetensors'}:0.5", "--lora", tmp_path / "web.safetensors"),
        *("--class-noun", "woman", "--trigger", "zmkl", "--seeds", 1, "--params", place / "params.yaml"),
    )
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert done.returncode == 3, done.stderr  # noise shows nobody
    assert metrics["says"][0].startswith(
        "Neither ada nor web is the person: 0 of 4 pictures of ada and 0 of 4 pictures of web show the same person."
    )
    found = metrics["results"]
    assert f"report: {out / 'score.html'}" in done.stdout
    assert found["web"]["converted"] and not found["ada"]["converted"]
    assert (found["ada"]["strength"], found["web"]["strength"]) == (0.5, 1.0)
    assert found["ada"]["estimates"]["same_of_all"]["value"] == 0.0


def test_finished_pictures_are_scored_without_a_lora(place: Path, tmp_path: Path) -> None:
    for name, pictures in (("mine", views(4, seed=9)), ("theirs", of_another(4, seed=9))):
        (tmp_path / name).mkdir()
        for number, picture in enumerate(pictures):
            about = PngInfo()
            about.add_text("parameters", f"portrait {number}\nNegative prompt: blurry\nSteps: 8, Sampler: Euler")
            Image.fromarray(picture).save(tmp_path / name / f"{number}.png", pnginfo=about)
    out = tmp_path / "scored"
    lines = score(request(place, pictures=[tmp_path / "mine", tmp_path / "theirs"]), out)
    assert lines[0].startswith("mine keeps the face better than theirs: ")
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["results"]
    assert found["mine"]["estimates"]["same_of_all"]["value"] == 1.0
    assert found["theirs"]["estimates"]["same_of_all"]["value"] == 0.0


def broken_png(path: Path) -> None:
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("packed", [False, True])
def test_pictures_that_cannot_be_read_are_one_sentence(
    packed: bool, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    Image.fromarray(views(1, seed=9)[0]).save(folder / "a.png")
    broken_png(folder / "broken.png")
    (folder / "text.png").write_text("no picture", encoding="utf-8")
    (folder / "prompts.txt").write_text("a portrait", encoding="utf-8")  # as some programs leave beside pictures
    source = Path(shutil.make_archive(str(folder), "zip", folder)) if packed else folder
    with pytest.raises(InputError) as refused:
        score(request(place, pictures=[source]), tmp_path / "out")
    assert str(refused.value).startswith(f"2 of the 3 pictures in {source} cannot be read: ")
    assert refused.value.names == "The first is broken.png."
    assert not (tmp_path / "out").exists() and "Traceback" not in capfd.readouterr().err


def test_a_stranger_s_picture_is_decoded_in_sandboxed_processes_only(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    for number, picture in enumerate(views(2, seed=9)):
        Image.fromarray(picture).save(tmp_path / "mine" / f"{number}.jpg")
    opened: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | Path):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    score(request(place, pictures=[tmp_path / "mine"]), tmp_path / "out")
    given = [path for path in opened if Path(path).parent in {tmp_path / "mine", place / "photos"}]
    opened.clear()
    assert not given
    assert sorted(path.suffix for path in (tmp_path / "out" / "pictures" / "mine").iterdir()) == [".png", ".png"]


def test_an_archive_of_pictures_is_scored(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for number, picture in enumerate(views(2, seed=9)):
        Image.fromarray(picture).save(tmp_path / "mine" / f"{number}.png")
    packed = Path(shutil.make_archive(str(tmp_path / "theirs"), "zip", tmp_path / "mine"))
    photos = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", place / "photos"))
    score(request(place, photos=photos, pictures=[packed]), tmp_path / "out")
    found = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert found["results"]["theirs"]["pictures"] == 2 and found["photos"] >= 4


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "photos is empty; put at least 1 photos of the person into it."),
        (["broken", "text"], "Only 0 of the 2 files in .*photos can be used, and ingest.min_photos asks for 1"),
    ],
)
def test_photos_that_cannot_be_read_are_one_sentence(files: list[str], said: str, place: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    if files:
        broken_png(tmp_path / "photos" / "broken.png")
        (tmp_path / "photos" / "text.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(InputError, match=said):
        score(request(place, photos=tmp_path / "photos", bases=[tiny_of(place)]), tmp_path / "out")


def test_photos_that_are_left_out_are_counted(place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(place / "photos", tmp_path / "photos")
    broken_png(tmp_path / "photos" / "broken.png")
    (tmp_path / "mine").mkdir()
    Image.fromarray(views(1, seed=9)[0]).save(tmp_path / "mine" / "a.png")
    lines = score(request(place, photos=tmp_path / "photos", pictures=[tmp_path / "mine"]), tmp_path / "out")
    assert lines[-1] == "1 of the 7 files of the photos could not be used."
    assert "the first is broken.png: " in caplog.text


def test_an_empty_folder_of_pictures_is_one_sentence(place: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match=r"mine holds no picture; give a folder, a zip or a tar with some"):
        score(request(place, pictures=[tmp_path / "mine"]), tmp_path / "out")


def tiny_of(place: Path) -> str:
    return str(read_section(place / "params.yaml", "base", Base).model)


def test_the_base_alone_has_a_row_and_a_page(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    hand_in(place, out, {"base": small(of_another(8, seed=5))})
    lines = score(request(place, bases=[tiny_of(place)], trigger=""), out)
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert list(found["results"]) == ["base"] and found["results"]["base"]["verdict"] is None
    assert found["results"]["base"]["estimates"]["same_of_all"]["n"] == 4 * SEEDS
    assert re.match(r"base: same person in \d+% ", lines[0])
    assert ">base</th>" in (out / "score.html").read_text(encoding="utf-8")


def test_a_strength_for_all_loras_and_one_for_a_single_one(place: Path, tmp_path: Path) -> None:
    files = [str(place / "ada.safetensors"), f"{place / 'eve.safetensors'}:0.25"]
    found = given_loras(files, tmp_path / "loras", trigger="zmkl", strength=0.8)
    assert [(one.name, one.strength) for one in found] == [("ada", 0.8), ("eve", 0.25)]


def test_the_blind_page_names_nothing_and_its_key_says_what_is_what(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    drawn = {"ada": small(views(8, seed=50)), "eve": small(of_another(8, seed=4)), "base": small(of_another(8, seed=5))}
    hand_in(place, out, drawn)
    files = [str(place / f"{name}.safetensors") for name in drawn if name != "base"]
    score(request(place, loras=files, blind=True), out)
    key = json.loads((out / "blind_key.json").read_text(encoding="utf-8"))
    page = (out / "blind.html").read_text(encoding="utf-8")
    words = re.sub(r"data:image/jpeg;base64,[^\"]+", "", page)
    assert not re.search(r"\b(?:ada|eve|base)\b", words) and "same person" not in words
    assert len(key) == 5 and all(sorted(each.values()) == ["ada", "base", "eve"] for each in key.values())
    assert len({tuple(each.values()) for each in key.values()}) > 1  # an order of its own for each prompt
    shown = re.findall(r'src="([^"]+)" alt="picture ([A-C])"', page)
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["prompt"], row["file"].split("/")[1].split("-x")[0]): row for row in csv.DictReader(file)}
    for number, prompt in enumerate(key):
        for uri, letter in shown[number * 3 : number * 3 + 3]:
            first = out / "pictures" / rows[prompt, key[prompt][letter]]["file"].split("/", 1)[1]
            first = first.with_name(re.sub(r"-\d+\.png$", "-0.png", first.name))
            assert uri == jpeg_uri(read_rgb(first), 320, 88)


def test_a_person_s_answers_and_the_rank_among_other_people_are_in_the_results(place: Path, tmp_path: Path) -> None:
    params = yaml.safe_load((place / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"]["impostors"] = "packaged"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    out = tmp_path / "out"
    hand_in(place, out, {"ada": small(views(8, seed=50)), "base": small(of_another(8, seed=5))})
    asked = request(place, loras=[str(place / "ada.safetensors")], params_file=tmp_path / "params.yaml")
    score(asked, out)
    first = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["results"]["ada"]
    assert "reviewed" not in first["estimates"]
    assert first["estimates"]["ranked_first"]["value"] > 0.8 and first["estimates"]["base_ranked_first"]["value"] == 0
    assert set(first["drifts"]) == {"contrast", "saturation", "skin"} and first["drifts"]["contrast"]["low"] is not None
    assert set(first["degradations"]) == {"blur", "noise", "blocking"} and "degraded" in first
    items = read_rows(out / "review.jsonl", Item)
    assert sum(item.kind == "picture" for item in items) == 4 * SEEDS
    said = {item.id: "no" if item.kind == "impostor" else "yes" for item in items}
    answers = {"format": "zimage-review-1", "review": identity_of(items), "answers": said}
    (tmp_path / "answers.json").write_text(json.dumps(answers), encoding="utf-8")
    score(replace(asked, review=tmp_path / "answers.json"), out)
    second = json.loads((out / "metrics.json").read_text(encoding="utf-8"))["results"]["ada"]
    assert second["estimates"]["reviewed"] == {"value": 1.0, "low": second["estimates"]["reviewed"]["low"],
                                               "high": 1.0, "n": 4 * SEEDS}  # fmt: skip
    assert second["review"].startswith("8 of 8 pictures are the person to a reviewer")
    page = (out / "score.html").read_text(encoding="utf-8")
    assert "What likeness hides" in page and "same person to a reviewer" in page
    (tmp_path / "answers.json").write_text(json.dumps(answers | {"review": "0" * 16}), encoding="utf-8")
    with pytest.raises(InputError, match="it is of other pictures than"):
        score(replace(asked, review=tmp_path / "answers.json"), out)


def test_pictures_of_the_suite_s_prompts_are_paired_with_the_loras(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mine = small(views(8, seed=60))
    hand_in(place, out, {"eve": small(of_another(8, seed=4)), "base": small(of_another(8, seed=5))})
    (tmp_path / "comfy").mkdir()
    prompts = read_suite(str(place / "suite.yaml"))
    for number, (prompt, seed) in enumerate((prompt, seed) for prompt in prompts for seed in range(SEEDS)):
        noise = CachedPicture(prompt.id, "", seed, None, 0.0).noise_seed
        nodes = workflow(replace(USE, prompt=with_subject(prompt, ADA)), "turbo")
        graph = api_form(nodes)
        graph["9"]["inputs"]["seed"] = noise
        about = PngInfo()
        about.add_text("prompt", json.dumps(graph))
        picture = Image.fromarray(mine[number % len(mine)])
        picture.save(tmp_path / "comfy" / f"{9 - number}.png", pnginfo=about)
    score(request(place, loras=[str(place / "eve.safetensors")], pictures=[tmp_path / "comfy"]), out)
    found = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    about = found["results"]["comfy"]
    assert (about["with_prompt"], about["with_seed"], about["of_the_suite"]) == (10, 10, 10)
    (likeness,) = [one for one in found["differences"] if one["measure"] == "likeness"]
    assert (likeness["first"], likeness["second"], likeness["n"]) == ("eve", "comfy", 4 * SEEDS)
    assert likeness["better"] == "second"
    (leaks,) = [one for one in found["differences"] if one["measure"] == "leaks"]
    assert leaks["n"] == SEEDS  # a picture of a leak prompt is none that asks for the person
    assert about["estimates"]["same_of_all"]["n"] == 4 * SEEDS
    with (out / "scores.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["file"].startswith("pictures/comfy/")]
    assert [(row["prompt"], int(row["seed"])) for row in rows] == [
        (prompt.id, seed) for prompt in reversed(prompts) for seed in reversed(range(SEEDS))
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "There is nothing to score; name a LoRA with --lora, a folder of pictures with --pictures, or a base"),
        (
            {"pictures": [Path("x")], "precision": 0.7},
            "The precision 0.7 cannot be used: give one above 0 and below 0.5",
        ),
        ({"loras": ["nobody.safetensors"]}, "There is no LoRA file nobody.safetensors"),
        ({"loras": ["{place}/ada.safetensors:strong"]}, "The strength in .*ada.safetensors:strong is not a number"),
        ({"loras": ["{place}/ada.safetensors"], "trigger": ""}, "does not say which word calls the person"),
        ({"pictures": [Path("no-such-folder")]}, "There are no photos at no-such-folder"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(changes: dict[str, Any], said: str, place: Path, tmp_path: Path) -> None:
    given = {
        key: [each.format(place=place) if isinstance(each, str) else each for each in value]
        if isinstance(value, list)
        else value
        for key, value in changes.items()
    }
    with pytest.raises(InputError, match=said):
        score(request(place, **given), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_consent_is_asked_before_a_photo_is_opened(place: Path, tmp_path: Path) -> None:
    consent = yaml.safe_load((ROOT / "data" / "consent.yaml").read_text(encoding="utf-8"))
    consent["expires"] = "2020-01-01"
    (tmp_path / "consent.yaml").write_text(yaml.safe_dump(consent), encoding="utf-8")
    with pytest.raises(InputError, match=r"2020-01-01"):
        score(
            request(place, consent=tmp_path / "consent.yaml", loras=[str(place / "ada.safetensors")]), tmp_path / "out"
        )
    assert not (cache_of(tmp_path / "out") / "ingest").exists()
