import datetime
import hashlib
import io
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import ExifTags, Image, ImageOps
from skimage import data

from tests.benchmarks.fuzz import fuzz_archives, fuzz_photos, whole_files
from zimage.core.errors import InputError
from zimage.core.jsonl import read_rows
from zimage.demo import make_demo_photos
from zimage.photos.clean import read_clean
from zimage.photos.rows import PhotoRow
from zimage.stages.ingest import IngestParams, ingest

CONSENT = Path(__file__).parents[2] / "data" / "consent.yaml"
PARAMS = IngestParams(min_photos=1, max_files=5000, max_file_mb=20, max_megapixels=40, max_side_px=2048)


def jpeg(number: int = 0) -> bytes:
    """Return one of many different small photos."""
    file = io.BytesIO()
    Image.fromarray(data.astronaut()).resize((100 + number, 100)).save(file, "JPEG")
    return file.getvalue()


def folder_of(path: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def rows_of(out: Path) -> dict[str, PhotoRow]:
    return {row.name: row for row in read_rows(out / "photos.jsonl", PhotoRow)}


def content_of(folder: Path) -> dict[str, str]:
    """Return a hash for each file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose demo photos were ingested."""
    workspace = tmp_path_factory.mktemp("workspace")
    make_demo_photos(workspace / "photos", seed=1)
    ingest(workspace / "photos", CONSENT, workspace / "data" / "ingest", params=PARAMS)
    return workspace


def test_every_demo_photo_gets_a_row_and_the_truncated_one_a_reason(demo: Path) -> None:
    rows = rows_of(demo / "data" / "ingest")
    assert sorted(rows) == sorted(path.name for path in (demo / "photos").iterdir())
    assert {name: row.reason for name, row in rows.items() if row.status == "rejected"} == {
        "IMG_2007_truncated.jpg": "truncated"
    }
    metrics = json.loads((demo / "data" / "ingest" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["files"], metrics["kept"], metrics["rejected_by_reason"]) == (31, 30, {"truncated": 1})


def test_the_photo_that_lies_on_its_side_is_upright(demo: Path) -> None:
    rows = rows_of(demo / "data" / "ingest")
    row = rows["IMG_1003.jpg"]
    assert row.notes == ["turned upright as its EXIF says"]
    with Image.open(demo / "data" / "ingest" / str(row.file)) as kept, Image.open(demo / "photos" / row.name) as given:
        assert ImageOps.exif_transpose(kept).size == given.size[::-1] == (row.width, row.height)


def test_nothing_but_the_picture_and_how_it_lies_is_kept(demo: Path) -> None:
    lying = rows_of(demo / "data" / "ingest")["IMG_1003.jpg"].file
    for path in (demo / "data" / "ingest" / "photos").iterdir():
        content = path.read_bytes()
        assert not any(word in content for word in (b"eXIf", b"iCCP", b"tEXt", b"tIME", b"Demo", b"2024:", b"http"))
        with Image.open(path) as image:
            assert image.mode == "RGB" and not {"icc_profile", "xmp", "comment"} & set(image.info)
            assert dict(image.getexif()) == ({ExifTags.Base.Orientation: 6} if path.match(f"*/{lying}") else {})


def test_clean_pictures_of_jpegs_take_no_more_room_than_the_photos_and_show_the_same(tmp_path: Path) -> None:
    sizes = {"small.jpg": (512, 512), "larger than max_side_px.jpg": (2600, 2000), "lying.jpg": (700, 500)}
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    (tmp_path / "photos").mkdir()
    for name, size in sizes.items():
        picture = Image.fromarray(data.astronaut()).resize(size)
        picture.save(tmp_path / "photos" / name, quality=90, exif=exif if name == "lying.jpg" else b"")
    out = tmp_path / "data" / "ingest"
    ingest(tmp_path / "photos", CONSENT, out, params=PARAMS)
    for name, row in rows_of(out).items():
        assert row.file is not None and row.width is not None and row.height is not None
        assert (out / row.file).stat().st_size <= row.size_bytes
        with Image.open(tmp_path / "photos" / name) as given:
            upright = ImageOps.exif_transpose(given)
        shown = read_clean(out / row.file, max(row.width, row.height))
        assert shown.shape[1::-1] == (row.width, row.height) and max(shown.shape) <= PARAMS.max_side_px
        if max(sizes[name]) <= PARAMS.max_side_px:
            assert np.array_equal(shown, np.asarray(upright))


def test_capture_times_are_counted_from_the_earliest_photo(demo: Path) -> None:
    times = [row.taken_at for row in rows_of(demo / "data" / "ingest").values() if row.taken_at is not None]
    assert min(times) == 0 and 1.0 in times and max(times) < 365 * 86400


def test_originals_are_never_changed_and_a_second_run_gives_the_same_bytes(demo: Path) -> None:
    originals, first = content_of(demo / "photos"), content_of(demo / "data" / "ingest")
    ingest(demo / "photos", CONSENT, demo / "data" / "ingest", params=PARAMS)
    assert content_of(demo / "photos") == originals
    assert content_of(demo / "data" / "ingest") == first


def test_three_photos_added_to_300_are_three_to_work_on(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", {f"{n:03d}.jpg": jpeg(n) for n in range(300)})
    ingest(photos, CONSENT, tmp_path / "data" / "ingest", params=PARAMS)
    cache = tmp_path / "data" / ".ingest.cache"
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    folder_of(photos, {f"{n:03d}.jpg": jpeg(n) for n in range(300, 303)})
    ingest(photos, CONSENT, tmp_path / "data" / "ingest", params=PARAMS)
    after = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    assert len(rows_of(tmp_path / "data" / "ingest")) == 303
    assert before.items() <= after.items()
    assert len({path.relative_to(cache).parts[0] for path in after.keys() - before.keys()}) == 3


def test_the_cache_may_be_deleted_and_forgets_photos_that_are_gone(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    out, cache = tmp_path / "data" / "ingest", tmp_path / "data" / ".ingest.cache"
    ingest(photos, CONSENT, out, params=PARAMS)
    before = content_of(out)
    shutil.rmtree(cache)
    ingest(photos, CONSENT, out, params=PARAMS)
    assert content_of(out) == before
    (photos / "b.jpg").unlink()
    ingest(photos, CONSENT, out, params=PARAMS)
    assert len(list(cache.iterdir())) == 1 and list(rows_of(out)) == ["a.jpg"]


def test_an_archive_gives_what_the_folder_gives(tmp_path: Path) -> None:
    files = {f"{n}.jpg": jpeg(n) for n in range(4)} | {"note.txt": b"no photo"}
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    ingest(folder_of(tmp_path / "photos", files), CONSENT, tmp_path / "data" / "a", params=PARAMS)
    ingest(tmp_path / "photos.zip", CONSENT, tmp_path / "data" / "b", params=PARAMS)
    assert content_of(tmp_path / "data" / "a") == content_of(tmp_path / "data" / "b")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_that_holds_a_photo_twice_under_one_name_gives_it_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for content in (jpeg(1), jpeg(1), jpeg(2)):
            archive.writestr("a.jpg", content)
    ingest(tmp_path / "photos.zip", CONSENT, tmp_path / "data" / "ingest", params=PARAMS)
    rows = read_rows(tmp_path / "data" / "ingest" / "photos.jsonl", PhotoRow)
    assert [row.reason for row in rows] == [None, "same_file", None]
    assert len({row.photo for row in rows if row.status == "kept"}) == 2


def test_bad_files_become_rows_with_reasons_beside_the_good_ones(tmp_path: Path) -> None:
    files = {
        "good.jpg": jpeg(),
        "again.jpg": jpeg(),
        "zero.jpg": b"",
        "text.jpg": b"this is no picture",
        "inner.zip": b"PK\x03\x04" + bytes(50),
        "cut.png": whole_files()["a.png"][:5000],
        "Photo.JPG": jpeg(1),
        "photo.jpg": jpeg(2),
        "写真 🎂.jpg": jpeg(3),
        "mislabelled.png": jpeg(4),
        "big.jpg": bytes(20_000_001),
    }
    photos = folder_of(tmp_path / "photos", files)
    os.mkfifo(photos / "pipe.jpg")
    ingest(photos, CONSENT, tmp_path / "data" / "ingest", params=PARAMS)
    rows = rows_of(tmp_path / "data" / "ingest")
    assert {name: row.reason for name, row in rows.items()} == {
        "again.jpg": None, "good.jpg": "same_file", "zero.jpg": "empty", "text.jpg": "not_an_image",
        "inner.zip": "archive", "cut.png": "truncated", "Photo.JPG": None, "photo.jpg": None, "写真 🎂.jpg": None,
        "mislabelled.png": None, "big.jpg": "too_large", "pipe.jpg": "not_a_file",
    }  # fmt: skip
    assert all(row.detail for row in rows.values() if row.reason)
    assert rows["good.jpg"].detail == "The same bytes as again.jpg."
    assert rows["mislabelled.png"].format == "JPEG"
    assert len(list((tmp_path / "data" / "ingest" / "photos").iterdir())) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "photos"]


def test_sidecars_are_counted_and_get_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {
        "a.jpg": jpeg(1), "a.jpg.supplemental-metadata.json": b"{}", "IMG_2.AAE": b"<plist/>", ".DS_Store": b"Bud1",
        "__MACOSX/._a.jpg": b"\0\5\x16\7" + bytes(50), "b.json": jpeg(2), "IMG_3.NEF": whole_files()["lzw.tif"],
        "IMG_1.MOV": b"\0\0\0\x14ftypqt  " + bytes(50), ".IMG_4.HEIC.icloud": b"bplist00" + bytes(50),
    }  # fmt: skip
    caplog.set_level("INFO")
    ingest(folder_of(tmp_path / "photos", files), CONSENT, tmp_path / "data" / "ingest", params=PARAMS)
    assert {name: row.reason for name, row in rows_of(tmp_path / "data" / "ingest").items()} == {
        "a.jpg": None, "b.json": None, "IMG_3.NEF": "raw", "IMG_1.MOV": "video",
        ".IMG_4.HEIC.icloud": "icloud_placeholder",
    }  # fmt: skip
    metrics = json.loads((tmp_path / "data" / "ingest" / "metrics.json").read_text(encoding="utf-8"))
    assert (metrics["files"], metrics["kept"], metrics["sidecars"]) == (5, 2, 4)
    lines = [record.getMessage() for record in caplog.records if "go with photos" in record.getMessage()]
    assert lines == ["left out 4 files that go with photos, such as .json, .AAE and __MACOSX"]


def test_a_folder_of_archives_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    files = {f"takeout-20260101T120000Z-{n:03}.zip": b"PK\3\4" + bytes(50 + n) for n in range(3)}
    with pytest.raises(InputError, match=r"\(3 archive\).*archives inside a folder are not opened; unpack all of them"):
        ingest(folder_of(tmp_path / "photos", files), CONSENT, tmp_path / "data" / "ingest", params=PARAMS)


def test_thousands_of_files_each_get_a_row(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", {"0.jpg": jpeg()})
    for number in range(2000):
        (photos / f"{number}.txt").write_text(str(number), encoding="utf-8")
    ingest(
        photos,
        CONSENT,
        tmp_path / "data" / "ingest",
        params=PARAMS.model_copy(update={"max_files": 1500, "min_photos": 1}),
    )
    reasons = [row.reason for row in rows_of(tmp_path / "data" / "ingest").values()]
    assert len(reasons) == 2001 and reasons.count("over_limit") == 501


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"expires": datetime.date(2020, 1, 1)}, "expired on 2020-01-01"),
        ({"scope": ["evaluation"]}, "but not training"),
        ({"adult": False}, "does not affirm an adult"),
        (None, "There is no consent file"),
    ],
)
def test_without_consent_no_photo_is_opened(tmp_path: Path, changes: dict[str, object] | None, said: str) -> None:
    consent = tmp_path / "consent.yaml"
    if changes is not None:
        given = yaml.safe_load(CONSENT.read_text(encoding="utf-8"))
        consent.write_text(yaml.safe_dump(given | changes), encoding="utf-8")
    photos = folder_of(tmp_path / "photos", {"a.jpg": jpeg()})
    os.mkfifo(photos / "would-block-if-opened.jpg")
    with pytest.raises(InputError, match=said):
        ingest(photos, consent, tmp_path / "data" / "ingest", params=PARAMS)
    assert not (tmp_path / "data").exists()


def test_an_empty_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"photos is empty; put at least 12 photos of the person into it"):
        ingest(tmp_path / "photos", CONSENT, tmp_path / "ingest", params=PARAMS.model_copy(update={"min_photos": 12}))


def test_too_few_photos_are_one_sentence_that_names_what_was_refused(tmp_path: Path) -> None:
    photos = folder_of(tmp_path / "photos", {"a.jpg": jpeg(), "b.jpg": b"", "c.jpg": jpeg()[:-300], "d.jpg": b""})
    out = tmp_path / "data" / "ingest"
    with pytest.raises(
        InputError,
        match=r"Only 1 of the 4 files in .* can be used, and ingest\.min_photos asks for 12 "
        r"\(2 empty, 1 truncated\); add photos of the person. The commonest refusal: The file has no bytes.",
    ) as caught:
        ingest(photos, CONSENT, out, params=PARAMS.model_copy(update={"min_photos": 12}))
    assert caught.value.names == "Refused: empty b.jpg, d.jpg; truncated c.jpg"
    assert ".jpg" not in str(caught.value)
    assert not out.exists()
    refused = tmp_path / "data" / "ingest.refused"
    assert f"{refused}/contact_sheet.html shows every file with its reason" in str(caught.value)
    rows = {row.name: row.reason for row in read_rows(refused / "photos.jsonl", PhotoRow)}
    assert rows == {"a.jpg": None, "b.jpg": "empty", "c.jpg": "truncated", "d.jpg": "empty"}
    sheet = (refused / "contact_sheet.html").read_text(encoding="utf-8")
    assert "These photos were refused." in sheet and all(name in sheet for name in rows)
    (photo,) = (row for row in read_rows(refused / "photos.jsonl", PhotoRow) if row.reason is None)
    assert [path.name for path in (refused / "thumbnails").iterdir()] == [f"{photo.photo}.jpg"]
    ingest(photos, CONSENT, out, params=PARAMS)
    assert not refused.exists()


def test_a_failed_run_leaves_the_last_result_as_it_was(tmp_path: Path) -> None:
    photos, out = folder_of(tmp_path / "photos", {"a.jpg": jpeg()}), tmp_path / "data" / "ingest"
    ingest(photos, CONSENT, out, params=PARAMS)
    before = content_of(out)
    (photos / "a.jpg").write_bytes(b"")
    with pytest.raises(InputError):
        ingest(photos, CONSENT, out, params=PARAMS)
    assert content_of(out) == before


def test_damaged_photos_become_rows_and_never_a_crash(tmp_path: Path) -> None:
    outcomes = fuzz_photos(250, 3, tmp_path)
    assert outcomes["damaged"] > 50 and outcomes["kept"] > 20 and outcomes["truncated"] > 10
    assert outcomes["crashed"] == 0


def test_damaged_archives_are_read_or_refused_and_never_a_crash(tmp_path: Path) -> None:
    assert sum(fuzz_archives(3, 3, tmp_path).values()) == 3
