"""Pictures that say who vouches for their origin, read back with the reader that others use."""

import http.server
import io
import json
import re
import shutil
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import c2pa
import pytest
from PIL import Image

from tasks.release.provenance import MADE_BY_A_MODEL, RELEASE, is_signature_of
from tasks.release.publish import Release
from tasks.release.publish import publish as publish_task
from tasks.settings import Signing
from tasks.store.protocol import StoreError
from tasks.store.releases import MANIFEST, fetch, manifest_of
from tasks.store.s3 import FolderStore
from tests.tasks.certificates import SERVER, STAMP, Signer, signer, stamped
from tests.tasks.finished import finished
from zimage.core.errors import InputError

SAMPLES = [f"samples/{number}.png" for number in range(1, 5)]


@pytest.fixture(scope="module")
def who(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return signer(tmp_path_factory.mktemp("signer") / "files")


@pytest.fixture
def signing(who: Signer) -> Signing:
    return Signing(who.certificates, who.key)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    return finished(tmp_path / "ada")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "store")


def publish(workspace: Path, store: FolderStore, signing: Signing | None) -> Release:
    return publish_task.fn(workspace, "ada", store, signing=signing)


def read(picture: bytes, root: str) -> tuple[str, dict[str, Any], list[str]]:
    """How a reader that knows the root judges a picture, what is claimed, and which checks failed."""
    context = c2pa.Context.from_dict({"trust": {"user_anchors": root}})
    reader = c2pa.Reader("image/png", io.BytesIO(picture), context=context)
    results, claimed = reader.get_validation_results(), reader.get_active_manifest()
    assert results is not None and claimed is not None
    state = reader.get_validation_state()
    return str(state), claimed, [each["code"] for each in results["activeManifest"]["failure"]]


def test_a_reader_finds_who_signed_that_a_model_made_it_and_of_which_release(
    workspace: Path, store: FolderStore, signing: Signing, who: Signer
) -> None:
    release = publish(workspace, store, signing)

    for name in SAMPLES:
        state, claimed, failures = read((store.root / release.key / name).read_bytes(), who.root)
        assert (state, failures) == ("Trusted", [])
        assert claimed["signature_info"]["common_name"] == "signer"
        (assertion,) = claimed["assertions"]
        (made,) = assertion["data"]["actions"]
        assert made["action"] == "c2pa.created"
        assert made["digitalSourceType"] == MADE_BY_A_MODEL
        assert made["softwareAgent"]["name"] == "zimage"
        assert made["parameters"] == {RELEASE: release.name}
        assert not re.search(r"\bada\b", json.dumps(claimed))  # as a word: random ids may spell it


def test_a_changed_pixel_is_noticed(workspace: Path, store: FolderStore, signing: Signing, who: Signer) -> None:
    release = publish(workspace, store, signing)
    signed = (store.root / release.key / SAMPLES[0]).read_bytes()
    changed = with_another_pixel(signed)

    assert pixels(changed) != pixels(signed)
    assert read(signed, who.root)[0] == "Trusted"
    assert read(changed, who.root)[0] == "Invalid"
    assert "assertion.dataHash.mismatch" in read(changed, who.root)[2]


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return image.tobytes()


def with_another_pixel(png: bytes) -> bytes:
    """The same file with one pixel a little different, and correct checksums."""
    start = png.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", png[start - 8 : start - 4])
    lines = bytearray(zlib.decompress(png[start : start + length]))
    lines[1] ^= 1
    packed = zlib.compress(bytes(lines))
    checksum = struct.pack(">I", zlib.crc32(b"IDAT" + packed))
    return png[: start - 8] + struct.pack(">I", len(packed)) + b"IDAT" + packed + checksum + png[start + length + 4 :]


def test_a_signed_picture_is_the_marked_one_and_a_signature(
    workspace: Path, store: FolderStore, signing: Signing
) -> None:
    plain, signed = publish(workspace, store, None), publish(workspace, store, signing)

    assert plain.name != signed.name
    for name in SAMPLES:
        before, after = ((store.root / each.key / name).read_bytes() for each in (plain, signed))
        assert is_signature_of(after, before)
        assert not is_signature_of(before, before)
        with Image.open(io.BytesIO(after)) as image:
            assert "trainedAlgorithmicMedia" in image.info["XML:com.adobe.xmp"]


def test_publishing_the_same_again_signs_nothing_anew(workspace: Path, store: FolderStore, signing: Signing) -> None:
    first = publish(workspace, store, signing)
    before = {key: (store.root / key).stat().st_mtime_ns for key in store.keys("")}

    again = publish(workspace, store, signing)

    assert (again.name, again.is_new, again.notice) == (first.name, False, None)
    assert {key: (store.root / key).stat().st_mtime_ns for key in store.keys("")} == before


def test_what_an_interrupted_publication_has_signed_is_what_the_next_one_publishes(
    workspace: Path, store: FolderStore, signing: Signing, tmp_path: Path
) -> None:
    first = publish(workspace, store, signing)
    before = {name: (store.root / first.key / name).read_bytes() for name in SAMPLES}
    (store.root / first.key / MANIFEST).unlink()
    shutil.rmtree(store.root / first.key / "samples")

    completed = publish(workspace, store, signing)

    assert (completed.name, completed.is_new) == (first.name, True)
    assert {name: (store.root / first.key / name).read_bytes() for name in SAMPLES} == before
    fetch(store, "ada", first.name, tmp_path / "got")


def test_publishers_at_the_same_time_agree_on_one_signature(
    workspace: Path, store: FolderStore, signing: Signing, tmp_path: Path
) -> None:
    other = shutil.copytree(workspace, tmp_path / "other" / "ada")
    releases: list[Release] = []
    both = [
        threading.Thread(target=lambda each=each: releases.append(publish(each, store, signing)))
        for each in (workspace, other)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()

    assert len({release.name for release in releases}) == 1
    fetch(store, "ada", releases[0].name, tmp_path / "got")


@pytest.mark.parametrize("place", ["{key}", "subjects/ada/releases/signed/{name}"])
def test_a_signed_picture_that_was_damaged_is_mended_from_its_copy(
    workspace: Path, store: FolderStore, signing: Signing, tmp_path: Path, place: str
) -> None:
    release = publish(workspace, store, signing)
    (damaged,) = (store.root / place.format(key=release.key, name=release.name)).rglob("2.png")
    before = damaged.read_bytes()
    damaged.write_bytes(before[:-20] + b"\0" + before[-19:])

    again = publish(workspace, store, signing)

    assert again.notice is not None and "2.png" in again.notice
    assert damaged.read_bytes() == before
    fetch(store, "ada", release.name, tmp_path / "got")


def test_where_all_copies_are_damaged_it_is_told_and_nothing_is_made_up(
    workspace: Path, store: FolderStore, signing: Signing
) -> None:
    release = publish(workspace, store, signing)
    before = manifest_of(store, "ada", release.name)
    for path in store.root.rglob("2.png"):
        path.write_bytes(b"rotten")

    with pytest.raises(StoreError, match=rf"{release.key}/samples/2.png is damaged in the store, and so is its copy"):
        publish(workspace, store, signing)
    assert manifest_of(store, "ada", release.name) == before


def test_a_damaged_copy_of_what_was_not_published_yet_is_signed_anew(
    workspace: Path, store: FolderStore, signing: Signing, tmp_path: Path
) -> None:
    release = publish(workspace, store, signing)
    (store.root / release.key / MANIFEST).unlink()
    for path in store.root.rglob("2.png"):
        path.write_bytes(b"rotten")

    publish(workspace, store, signing)

    fetch(store, "ada", release.name, tmp_path / "got")


def test_another_certificate_makes_another_release(
    workspace: Path, store: FolderStore, signing: Signing, tmp_path: Path
) -> None:
    first = publish(workspace, store, signing)
    other = signer(tmp_path / "other")

    second = publish(workspace, store, Signing(other.certificates, other.key))

    assert second.is_new and second.name != first.name


def test_the_private_key_is_nowhere_in_the_store_nor_in_what_is_said(
    workspace: Path, store: FolderStore, signing: Signing, who: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    publish(workspace, store, signing)

    secret = "".join(who.key.read_text().splitlines()[1:-1])
    assert not any(secret[:40].encode() in path.read_bytes() for path in store.root.rglob("*") if path.is_file())
    assert secret[:40] not in caplog.text + repr(signing)


@pytest.mark.parametrize(
    "told",
    [
        ("no key", "ZIMAGE_C2PA_KEY is not set; set it, or unset both"),
        ("absent", r"ZIMAGE_C2PA_CERTIFICATES names .*/nowhere.pem, and there is no such file"),
        ("of another", "the signature does not match the provided data or public key"),
        ("garbage", "invalid ES256 private key"),
        ("algorithm", r"by rot13 \(Other: Invalid signing algorithm"),
        ("ended", "the certificate was not valid at time of signing"),
        ("of a server", r"the certificate is invalid\); infra/guide.md says what kind of certificate"),
    ],
    ids=lambda told: told[0].replace(" ", "-"),
)
def test_what_cannot_sign_is_told_before_anything_is_stored(
    workspace: Path, store: FolderStore, signing: Signing, tmp_path: Path, told: tuple[str, str]
) -> None:
    case, says = told
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("-----BEGIN PRIVATE KEY-----\nTheVerySecret\n-----END PRIVATE KEY-----\n")
    match case:
        case "no key":
            signing = replace(signing, key=None)
        case "absent":
            signing = replace(signing, certificates=tmp_path / "nowhere.pem")
        case "of another":
            signing = replace(signing, key=signer(tmp_path / "other").key)
        case "garbage":
            signing = replace(signing, key=wrong)
        case "algorithm":
            signing = replace(signing, algorithm="rot13")
        case _:
            made = signer(tmp_path / "made", **({"days": -1} if case == "ended" else {"purpose": SERVER}))
            signing = Signing(made.certificates, made.key)

    with pytest.raises(InputError, match=says) as refused:
        publish(workspace, store, signing)

    assert "TheVerySecret" not in str(refused.value)
    assert store.keys("") == []


def test_without_the_package_the_remedy_is_told(
    workspace: Path, store: FolderStore, signing: Signing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)

    with pytest.raises(InputError, match=r"the package is missing; `pip install 'zimage\[sign\]'`, or unset it"):
        publish(workspace, store, signing)
    assert store.keys("") == []


@contextmanager
def answering(answer: Callable[[bytes], tuple[int, bytes]]) -> Iterator[str]:
    """A server that answers time-stamp queries."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, content = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_time_stamp_is_asked_for_where_an_authority_is_configured(
    workspace: Path, store: FolderStore, signing: Signing, who: Signer, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which stamps in this test, is not here")
    authority = signer(tmp_path / "authority", purpose=STAMP)
    with answering(lambda query: (200, stamped(query, authority))) as address:
        release = publish(workspace, store, replace(signing, timestamps=address))

    state, claimed, failures = read((store.root / release.key / SAMPLES[0]).read_bytes(), who.root)
    assert (state, failures) == ("Trusted", [])
    assert claimed["signature_info"]["time"]


def test_an_authority_that_does_not_stamp_is_told_and_nothing_is_published(
    workspace: Path, store: FolderStore, signing: Signing
) -> None:
    with (
        answering(lambda _: (500, b"")) as address,
        pytest.raises(StoreError, match=rf"The time-stamp authority {address} did not stamp: .*; run again, or unset"),
    ):
        publish(workspace, store, replace(signing, timestamps=address))
    assert not any(key.endswith((MANIFEST, ".png", ".safetensors")) for key in store.keys(""))
