from pathlib import Path

import pytest
from PIL import Image

from zimage.training.page import NOISE_LEVELS, render, seen

HEAD = "step,loss,smooth,gradient_norm,learning_rate\n"
PROMPTS = ["a photo of ohzw woman", "ohzw & <others>"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A training of 3 steps of 8, two checkpoints with a picture of each prompt, one of them missing."""
    (tmp_path / "samples").mkdir()
    (tmp_path / "loss.csv").write_text(HEAD + "1,1.5,1.5,1,1\n2,1.25,1.4,1,1\n3,1.0,1.375,1,1\n4,0.9")
    for name in ("step-000002-0", "step-000002-1", "step-000003-0"):
        Image.new("RGB", (1024, 512), (200, 100, 50)).save(tmp_path / "samples" / f"{name}.png")
    (tmp_path / "samples" / "step-000003-1.png").write_bytes(b"\x89PNG half")
    return tmp_path


def page(folder: Path, *, working: bool = True, pictured: bool = True) -> str:
    return render(seen(folder), PROMPTS, title="Training of ada", total=8, pictured=pictured, working=working)


def test_a_page_tells_how_far_a_training_is_and_shows_its_loss(folder: Path) -> None:
    text = page(folder)

    assert "Step 3 of 8, mean loss of the last steps 1.375." in text
    assert "width:37.5%" in text
    assert text.count("<polyline") == 2


def test_pictures_stand_by_step_and_prompt_the_newest_first(folder: Path) -> None:
    text = page(folder)

    assert text.count("data:image/jpeg;base64,") == 3
    assert text.index("<tr><th>3</th>") < text.index("<tr><th>2</th>")
    assert "ohzw &amp; &lt;others&gt;" in text


def test_a_picture_that_was_seen_is_not_read_again(folder: Path) -> None:
    assert seen(folder, {(2, 0): "data:seen"}).pictures[2, 0] == "data:seen"


def test_a_page_needs_nothing_but_itself(folder: Path) -> None:
    text = page(folder)

    assert "<script" not in text and "http://" not in text and "https://" not in text
    assert len(text) < 100_000  # pictures of 1024 px were made smaller


def test_a_page_shows_how_often_each_noise_level_is_trained_on(folder: Path) -> None:
    assert "Noise levels" not in page(folder)
    (folder / NOISE_LEVELS).write_text("sigma,density\n0.25,0.5\n0.75,1.5\n")
    assert page(folder).count("<polyline") == 3 and "<h2>Noise levels</h2>" in page(folder)


def test_a_page_looks_for_news_until_the_training_has_ended(folder: Path) -> None:
    assert 'http-equiv="refresh"' in page(folder)
    assert 'http-equiv="refresh"' not in page(folder, working=False)
    assert "Training has ended." in page(folder, working=False)


def test_a_page_without_pictures_says_why(tmp_path: Path) -> None:
    assert "The first are made at the first checkpoint." in page(tmp_path)
    assert "<code>train.samples</code> is not set." in page(tmp_path, pictured=False)
    assert "No step has been written down yet." in page(tmp_path)


def test_a_page_shows_the_warnings_that_a_training_wrote_before_its_first_step(tmp_path: Path) -> None:
    assert 'role="alert"' not in page(tmp_path)
    (tmp_path / "metrics.json").write_text('{"warnings": ["it is Turbo <b>"]}', encoding="utf-8")
    assert '<p class="warning" role="alert">it is Turbo &lt;b&gt;</p>' in page(tmp_path)
    (tmp_path / "metrics.json").write_text('{"warn', encoding="utf-8")
    assert 'role="alert"' not in page(tmp_path)
