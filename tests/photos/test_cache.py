from pathlib import Path

import pytest

from zimage.photos.cache import Cache, cache_of, filled, salt


def fill(folder: Path) -> None:
    (folder / "result.txt").write_text("42", encoding="utf-8")


def refuse(folder: Path) -> None:
    (folder / "half.txt").write_text("4", encoding="utf-8")
    raise OSError("disk full")


def test_an_entry_is_filled_once(tmp_path: Path) -> None:
    entry = Cache(tmp_path / "cache", "salt").entry("key")
    filled(entry, fill)
    (entry / "result.txt").write_text("kept", encoding="utf-8")
    assert (filled(entry, fill) / "result.txt").read_text(encoding="utf-8") == "kept"


def test_an_entry_that_failed_is_not_there(tmp_path: Path) -> None:
    entry = Cache(tmp_path / "cache", "salt").entry("key")
    with pytest.raises(OSError, match="disk full"):
        filled(entry, refuse)
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_key_or_salt_is_another_entry(tmp_path: Path) -> None:
    names = {Cache(tmp_path, s).entry(key).name for s in ("a", "b") for key in ("x", "y")}
    assert len(names) == 4


def test_pruning_leaves_what_was_kept_and_nothing_of_an_interrupted_run(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", "salt")
    kept, dropped = filled(cache.entry("kept"), fill), filled(cache.entry("dropped"), fill)
    (tmp_path / "cache" / ".half.123").mkdir()
    cache.keep(kept)
    cache.prune()
    assert list((tmp_path / "cache").iterdir()) == [kept]
    assert not dropped.exists()


def test_pruning_what_was_never_filled_is_nothing(tmp_path: Path) -> None:
    Cache(tmp_path / "cache", "salt").prune()
    assert not (tmp_path / "cache").exists()


def test_the_cache_lies_beside_the_output(tmp_path: Path) -> None:
    assert cache_of(tmp_path / "data" / "detect") == tmp_path / "data" / ".detect.cache"


def test_the_salt_names_the_code_and_the_libraries() -> None:
    text = salt("zimage.faces.observation", "engine 1")
    assert text.startswith("sha256:") and "dlib-bin 2" in text and text.endswith("engine 1")
    assert text.splitlines()[0] != salt("zimage.photos.intake").splitlines()[0]
