import io
import os
import socket
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from zimage.core.errors import InputError
from zimage.photos.decode import RefusedError
from zimage.photos.given_file import MAX_ENTRIES, Given
from zimage.photos.sources import expected, given

MAX_BYTES = 1000


def all_of(source: Path, max_files: int = 100) -> dict[str, Given]:
    return {one.name: one for one in given(source, max_files=max_files, max_bytes=MAX_BYTES)}


def reason(one: Given) -> str:
    with pytest.raises(RefusedError) as caught:
        one.read(MAX_BYTES)
    return caught.value.reason


def zipped(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, entries: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


ENTRIES = {"b.jpg": b"second", "a/ü 写真.jpg": b"first"}


@pytest.mark.parametrize(
    "packed",
    [
        lambda path: zipped(path / "x.zip", ENTRIES),
        lambda path: tarred(path / "x.tar", ENTRIES),
        lambda path: tarred(path / "x.tar.gz", ENTRIES, "w:gz"),
        lambda path: tarred(path / "x.tar.bz2", ENTRIES, "w:bz2"),
        lambda path: tarred(path / "x.bin", ENTRIES, "w:xz"),
    ],
)
def test_an_archive_is_read_whatever_it_is_called(tmp_path: Path, packed: Callable[[Path], Path]) -> None:
    files = all_of(packed(tmp_path))
    assert {name: one.read(MAX_BYTES) for name, one in files.items()} == ENTRIES


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jpg", "B.jpg", "sub/a.jpg", "a.jpg", "ü.jpg", "写真.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    files = all_of(tmp_path)
    assert list(files) == sorted(files)
    assert all(one.read(MAX_BYTES) == name.encode() for name, one in files.items())
    assert expected(tmp_path) == 6


def test_a_name_that_is_no_text_is_shown_escaped(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"x")
    (name,) = all_of(tmp_path)
    assert name == "caf\\xe9.jpg"
    assert all_of(tmp_path)[name].read(MAX_BYTES) == b"x"


def test_what_is_no_file_is_refused_and_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
        (tmp_path / "broken.jpg").symlink_to(tmp_path / "nowhere")
        (tmp_path / "round").symlink_to(tmp_path, target_is_directory=True)
        reasons = {name: reason(one) for name, one in all_of(tmp_path).items()}
    assert reasons == {
        "pipe.jpg": "not_a_file",
        "socket.jpg": "not_a_file",
        "broken.jpg": "unreadable",
        "round": "link",
    }


def test_a_link_to_a_photo_is_a_photo(tmp_path: Path) -> None:
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "a.jpg").write_bytes(b"x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").symlink_to(tmp_path / "originals" / "a.jpg")
    assert all_of(tmp_path / "photos")["a.jpg"].read(MAX_BYTES) == b"x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "a.jpg").chmod(0)
    assert reason(all_of(tmp_path)["a.jpg"]) == "unreadable"


def test_a_file_that_is_gone_when_its_turn_comes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    one = all_of(tmp_path)["a.jpg"]
    (tmp_path / "a.jpg").unlink()
    assert reason(one) == "unreadable"


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(bytes(MAX_BYTES + 1))
    assert reason(all_of(tmp_path)["a.jpg"]) == "too_large"
    archive = zipped(tmp_path / "x.zip", {"a.jpg": os.urandom(MAX_BYTES + 1)})
    assert reason(all_of(archive)["a.jpg"]) == "too_large"
    archive = tarred(tmp_path / "x.tar", {"a.jpg": bytes(MAX_BYTES + 1)})
    assert reason(all_of(archive)["a.jpg"]) == "too_large"


def test_files_beyond_the_limit_are_named_but_not_read(tmp_path: Path) -> None:
    for source in (
        zipped(tmp_path / "x.zip", {f"{n}.jpg": b"x" for n in range(5)}),
        tarred(tmp_path / "x.tar", {f"{n}.jpg": b"x" for n in range(5)}),
    ):
        files = all_of(source, max_files=3)
        assert [name for name, one in files.items() if one.refusal] == ["3.jpg", "4.jpg"]
        assert reason(files["4.jpg"]) == "over_limit"


@pytest.mark.parametrize(
    "name",
    [
        "../../a.jpg",
        "/sdcard/DCIM/a.jpg",
        "..\\a.jpg",
        "C:\\a.jpg",
        "C:/Users/me/a.jpg",
        "8:30 pm a.jpg",
        "a/../../a.jpg",
    ],
)
def test_a_name_in_an_archive_is_shown_and_never_becomes_a_path(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for archive in (tarred(inside / "x.tar", {name: b"x"}), zipped(inside / "x.zip", {name: b"x"})):
        ((shown, one),) = all_of(archive).items()
        assert one.read(MAX_BYTES) == b"x"
        assert shown.endswith("a.jpg")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["inside", "x.tar", "x.zip"]


def test_links_in_archives_are_refused_also_where_they_run_in_a_circle(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, target, kind in (
            ("a", "b", tarfile.SYMTYPE),
            ("b", "a", tarfile.SYMTYPE),
            ("c", "../../etc/passwd", tarfile.LNKTYPE),
            ("d", "", tarfile.CHRTYPE),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    assert {name: reason(one) for name, one in all_of(tmp_path / "x.tar").items()} == {
        "a": "link", "b": "link", "c": "link", "d": "not_a_file",
    }  # fmt: skip
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as zipped_links:
        link = zipfile.ZipInfo("a.jpg")
        link.external_attr = 0o120777 << 16
        zipped_links.writestr(link, "../../etc/passwd")
    assert reason(all_of(tmp_path / "x.zip")["a.jpg"]) == "link"


def test_an_entry_made_to_fill_memory_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", {"bomb.bmp": bytes(20_000_000)})
    (one,) = given(archive, max_files=10, max_bytes=10**9)
    assert reason(one) == "archive_bomb"


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "x.zip", {"a.jpg": b"secret"})
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert reason(all_of(archive)["a.jpg"]) == "encrypted"


def with_method(path: Path, method: int) -> Path:
    """Return a zip whose entries say that they are packed by another method."""
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        at = 0
        while (at := content.find(signature, at)) >= 0:
            content[at + offset : at + offset + 2] = struct.pack("<H", method)
            at += 4
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("method", "name"), [(9, "deflate64"), (93, "zstd"), (98, "ppmd"), (77, "method 77")])
def test_an_entry_packed_by_another_method_is_refused_with_its_name_and_the_remedy(
    tmp_path: Path, method: int, name: str
) -> None:
    one = all_of(with_method(zipped(tmp_path / "x.zip", {"a.jpg": b"x"}), method))["a.jpg"]
    assert reason(one) == "unknown_compression"
    assert one.refusal is not None
    assert one.refusal[1] == f"It is packed with {name}, which is not read; unpack the archive and name the folder."


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\7\x08PK\3\4" + bytes(500), "one part of a split zip archive"),
        (b"PK\3\4" + bytes(500), "one part of a split zip archive, or was not copied to its end"),
        (bytes(500) + b"PK\5\6\2\0\2\0" + bytes(14), "one part of a split zip archive"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(500), "a 7-Zip archive, which is not read; unpack it and name the folder"),
        (b"Rar!\x1a\7\1\0" + bytes(500), "a RAR archive, which is not read"),
        (b"(\xb5/\xfd" + bytes(500), "packed with zstd"),
    ],
)
def test_an_archive_of_another_kind_or_a_part_of_one_is_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "photos").write_bytes(content)
    with pytest.raises(InputError, match=said):
        all_of(tmp_path / "photos")


def test_a_file_that_is_too_large_is_called_by_its_kind(tmp_path: Path) -> None:
    files = {"takeout-001.zip": b"PK\3\4", "film.mov": b"\0\0\0\x14ftypqt  ", "a.jpg": b"\xff\xd8\xff"}
    large = {name: head + bytes(100_000) for name, head in files.items()}
    (tmp_path / "photos").mkdir()
    for name, content in large.items():
        (tmp_path / "photos" / name).write_bytes(content)
    packed = [zipped(tmp_path / "x.zip", large), tarred(tmp_path / "x.tar", large)]
    for source in (tmp_path / "photos", *packed):
        reasons = {name: reason(one) for name, one in all_of(source).items()}
        assert reasons == {"takeout-001.zip": "archive", "film.mov": "video", "a.jpg": "too_large"}


def test_sidecars_do_not_count_as_files_to_look_at(tmp_path: Path) -> None:
    files = {name: b"x" for n in range(3) for name in (f"{n}.jpg", f"{n}.jpg.json", f"__MACOSX/._{n}.jpg")}
    for source in (zipped(tmp_path / "x.zip", files), tarred(tmp_path / "x.tar", files)):
        refused = [name for name, one in all_of(source, max_files=2).items() if one.refusal]
        assert [name for name in refused if name.endswith("jpg") and "MACOSX" not in name] == ["2.jpg"]


def test_a_damaged_entry_is_refused_and_the_next_one_read(tmp_path: Path) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as stored:
        stored.writestr("a.jpg", b"damaged later")
        stored.writestr("b.jpg", b"whole")
    archive.write_bytes(archive.read_bytes().replace(b"damaged later", b"damaged LATER"))
    files = all_of(archive)
    assert reason(files["a.jpg"]) == "unreadable"
    assert files["b.jpg"].read(MAX_BYTES) == b"whole"


def test_a_tar_that_ends_early_keeps_what_came_before(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "x.tar", {"a.jpg": bytes(600), "b.jpg": bytes(600)})
    archive.write_bytes(archive.read_bytes()[:2300])
    files = all_of(archive)
    assert files["a.jpg"].read(MAX_BYTES) == bytes(600)
    assert reason(files["(after entry 1)"]) == "truncated_archive"


def test_a_tar_header_that_asks_for_gigabytes_gets_none(tmp_path: Path) -> None:
    archive = tarred(tmp_path / "x.tar", {"a.jpg": b"whole"})
    bomb = tarfile.TarInfo("b.jpg")
    bomb.type, bomb.size = tarfile.XHDTYPE, 1 << 40
    with tarfile.open(archive, "a") as appended:
        appended.addfile(bomb)
    files = all_of(archive)
    assert files["a.jpg"].read(MAX_BYTES) == b"whole"
    assert reason(files["(after entry 1)"]) == "truncated_archive"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "There are no photos at .*; name a folder, or a zip or tar"),
        (lambda path: path.write_bytes(b"neither"), "neither a folder, a zip nor a tar that can be read"),
        (lambda path: path.write_bytes(b""), "neither a folder, a zip nor a tar that can be read"),
    ],
)
def test_what_is_no_source_is_one_sentence(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / "photos")
    with pytest.raises(InputError, match=said):
        all_of(tmp_path / "photos")


def zip_with(path: Path, entries: int) -> Path:
    """Write a zip whose directory claims so many empty files."""
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
    names = (b"%08d" % number for number in range(entries))
    directory = b"".join(entry + name for name in names)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, entries & 0xFFFF, entries & 0xFFFF, len(directory), 0, 0)
    path.write_bytes(directory + end)
    return path


@pytest.mark.parametrize("entries", [MAX_ENTRIES + 1, 20 * MAX_ENTRIES])
def test_an_archive_of_very_many_entries_is_refused_before_they_take_memory(entries: int, tmp_path: Path) -> None:
    archive = zip_with(tmp_path / "x.zip", entries)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=r"x\.zip holds more than 20000 files; give a folder or archive of photos"):
            list(given(archive, max_files=5000, max_bytes=MAX_BYTES))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 25_000_000
    assert expected(archive) == 0


def test_a_folder_of_very_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(MAX_ENTRIES + 1):
        (tmp_path / str(number)).touch()
    with pytest.raises(InputError, match="holds more than 20000 files"):
        list(given(tmp_path, max_files=5000, max_bytes=MAX_BYTES))


def test_a_name_that_would_control_a_terminal_is_shown_escaped(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[2J\u202egpj\n.jpg").write_bytes(b"x")
    (name,) = all_of(tmp_path)
    assert name == r"a\x1b[2J\u202egpj\n.jpg"
