import json
from pathlib import Path

import pytest
import skimage.data
import yaml
from PIL import Image

from tests.captions.tiny_vlm import write_tiny_qwen3_vl
from zimage.captions.rows import CaptionRow
from zimage.captions.subject import Subject
from zimage.captions.vlm import Prompts, VlmParams
from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows, write_rows
from zimage.model.base import Base
from zimage.model.pinned import identity_of
from zimage.photos.rows import CropRow
from zimage.stages.caption import CaptionParams, caption

PARAMS = Path(__file__).parents[2] / "params.yaml"
SUBJECT = Subject(trigger="ohzw", class_noun="woman")


@pytest.fixture(scope="module")
def params() -> CaptionParams:
    section = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))["caption"]
    return CaptionParams.model_validate(section).model_copy(update={"captioner": "template", "languages": ["en", "zh"]})


@pytest.fixture
def detect(tmp_path: Path) -> Path:
    folder = tmp_path / "detect"
    (folder / "train").mkdir(parents=True)
    rows = [crop("train/aa-full.png", "aa", "train"), crop("train/aa-head.png", "aa", "train"),
            crop("train/bb-full.png", "bb", "train"), crop("holdout/cc.png", "cc", "holdout")]  # fmt: skip
    for row in rows[:3]:
        Image.fromarray(skimage.data.astronaut()[:256, 96:352]).save(folder / row.file)
    write_rows(folder / "crops.jsonl", rows)
    return folder


def crop(file: str, photo: str, split: str) -> CropRow:
    return CropRow(
        file=file,
        photo=photo,
        split=split,  # type: ignore[arg-type]
        kind="head" if "head" in file else "full",
        width=256,
        height=256,
        scale=1.0,
        face_box_xyxy=(81, 75, 184, 180),
        points_xy=[(0, 0)] * 5,
        mask=None,
        yaw_deg=-18,
        roll_deg=1,
        sharpness=50,
        face_luma=0.6,
        chroma=0.2,
        warmth=0.2,
        background_rgb=(170, 170, 175),
        burst=0,
    )


def run(detect: Path, params: CaptionParams, base: Base) -> list[CaptionRow]:
    root = detect.parent
    caption(detect, root / "overrides", root / "caption", params=params, base=base, subject=SUBJECT)
    return read_rows(root / "caption" / "captions.jsonl", CaptionRow)


def test_every_training_crop_gets_a_caption_in_each_language(
    detect: Path, params: CaptionParams, tiny_base: Base
) -> None:
    rows = run(detect, params, tiny_base)
    assert [row.file for row in rows] == ["train/aa-full.png", "train/aa-head.png", "train/bb-full.png"]
    english, chinese = rows[0].captions
    assert english.startswith("a photo of ohzw woman, head and shoulders, turned slightly to the left, head upright")
    assert chinese.startswith("一张 ohzw 女人的照片，头部和肩膀，略微转向左边")
    metrics = json.loads((detect.parent / "caption" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["crops"], metrics["captions"], metrics["trigger_tokens"]) == (3, 6, 5)


def test_a_persons_own_captions_win_and_survive_another_run(
    detect: Path, params: CaptionParams, tiny_base: Base
) -> None:
    folder = detect.parent / "overrides" / "captions"
    folder.mkdir(parents=True)
    (folder / "aa.txt").write_text("a photo of ohzw woman with long hair, as I want it\n", encoding="utf-8")
    (folder / "zz.txt").write_text("for nobody", encoding="utf-8")
    for _ in range(2):
        rows = {row.file: row for row in run(detect, params, tiny_base)}
        assert rows["train/aa-head.png"].captions == ["a photo of ohzw woman with long hair, as I want it"]
        assert rows["train/aa-head.png"].captioner == "person"
        assert rows["train/bb-full.png"].captioner == "template"
    metrics = json.loads((detect.parent / "caption" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["overrides_without_a_crop"] == ["zz.txt"]
    assert (metrics["by_a_person"], metrics["by_a_person_without_trigger"]) == (2, 0)


def test_a_local_model_is_asked_once_for_each_picture_and_language(
    detect: Path, params: CaptionParams, tiny_base: Base
) -> None:
    model = write_tiny_qwen3_vl(detect.parent / "vlm")
    prompts = Prompts(en="Describe.", zh="描述。")
    identity = identity_of(str(model))
    vlm = VlmParams(model=str(model), identity=identity, max_side_px=64, max_new_tokens=4, prompts=prompts)
    asking = params.model_copy(update={"captioner": "vlm", "vlm": vlm})
    first = run(detect, asking, tiny_base)
    answers = sorted((detect.parent / ".caption.cache").iterdir())
    assert len(answers) == 2  # the three crops hold the same picture
    answers[0].write_text("A woman with freckles, in a red coat", encoding="utf-8")
    answers[1].write_text("A woman with freckles, in a red coat", encoding="utf-8")
    (row, *_) = run(detect, asking, tiny_base)
    assert row.captions[0].startswith("a photo of ohzw woman, in a red coat, head and shoulders")
    assert [rewrite.removed for rewrite in row.rewrites] == ["freckles"]
    assert row.captioner.startswith(f"vlm {model} ")
    assert all(text.startswith(("a photo of ohzw woman", "一张 ohzw 女人的照片")) for text in first[0].captions)
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(InputError, match=r"caption\.vlm\.identity pins sha256:.*restore the pinned files"):
        run(detect, asking, tiny_base)


def test_a_trigger_that_is_a_name_stops_before_anything_is_written(
    detect: Path, params: CaptionParams, tiny_base: Base
) -> None:
    out = detect.parent / "caption"
    with pytest.raises(InputError, match="is a given name"):
        caption(
            detect, detect, out, params=params, base=tiny_base, subject=Subject(trigger="julia", class_noun="woman")
        )
    assert not out.exists()


def test_no_training_crop_is_told_with_the_remedy(detect: Path, params: CaptionParams, tiny_base: Base) -> None:
    write_rows(detect / "crops.jsonl", [crop("holdout/cc.png", "cc", "holdout")])
    with pytest.raises(InputError, match="holds no training crop"):
        run(detect, params, tiny_base)


def test_the_model_captioner_without_a_model_is_told(detect: Path, params: CaptionParams, tiny_base: Base) -> None:
    with pytest.raises(InputError, match=r"caption\.vlm is null"):
        run(detect, params.model_copy(update={"captioner": "vlm", "vlm": None}), tiny_base)


def test_a_trigger_behind_what_the_text_encoder_reads_is_refused_with_the_crops(
    detect: Path, params: CaptionParams, tiny_base: Base
) -> None:
    folder = detect.parent / "overrides" / "captions"
    folder.mkdir(parents=True)
    (folder / "aa.txt").write_text(f"{'x' * 600} ohzw woman\n", encoding="utf-8")
    with pytest.raises(InputError) as refused:
        run(detect, params, tiny_base)
    assert str(refused.value) == (
        "The trigger `ohzw` of 2 caption(s) lies behind the 512 tokens that the text encoder reads, so nothing would "
        "be learnt under it (train/aa-full.png, train/aa-head.png); begin these captions with it, or shorten them."
    )
    assert not (detect.parent / "caption").exists()


def test_captions_that_are_cut_are_counted_and_named(
    detect: Path, params: CaptionParams, tiny_base: Base, caplog: pytest.LogCaptureFixture
) -> None:
    folder = detect.parent / "overrides" / "captions"
    folder.mkdir(parents=True)
    (folder / "bb.txt").write_text(f"ohzw woman {'x' * 600}\n", encoding="utf-8")
    run(detect, params, tiny_base)
    assert "1 caption(s) are cut at the 512 tokens that the text encoder reads: train/bb-full.png" in caplog.messages
    metrics = json.loads((detect.parent / "caption" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["captions_cut"] == 1
