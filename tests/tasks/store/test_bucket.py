import itertools
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config

from tasks.store.bucket import ATTEMPTS, Bucket, Listed
from tasks.store.s3 import S3Store, StoreError
from tests.album import Album
from tests.tasks.faults import unwell
from zimage.core.errors import InputError


def listed(album: Album, **contents: bytes) -> list[Listed]:
    for key, content in contents.items():
        album.put(f"{key}.jpg", content)
    return Bucket.at("s3://album/ada").listed(most=100)


def test_files_are_listed_below_the_prefix_and_not_below_its_namesakes(album: Album) -> None:
    album.put("", b"")
    album.put("beach/", b"")
    album.put("beach/b.jpg", b"bb")
    album.put("a.jpg", b"")

    found = Bucket.at("s3://album/ada/").listed(most=100)

    assert [(one.key, one.size_bytes) for one in found] == [("a.jpg", 0), ("beach/b.jpg", 2)]
    assert [one.key for one in Bucket.at("s3://album").listed(most=100)][-1] == "adam/not-hers.jpg"


def test_a_bucket_full_of_other_things_is_refused_while_it_is_listed(album: Album) -> None:
    with pytest.raises(InputError, match="s3://album/ada holds more than 2 files; name a prefix with photos only"):
        Bucket.at("s3://album/ada").listed(most=len(listed(album, a=b"1", b=b"2", c=b"3")) - 1)


def test_a_file_is_known_again_by_size_and_md5(album: Album, tmp_path: Path) -> None:
    (one,) = listed(album, a=b"photo")
    path = tmp_path / "a.jpg"
    assert not one.is_content_of(path)
    for content, same in ((b"photo", True), (b"phot0", False), (b"photo ", False)):
        path.write_bytes(content)
        assert one.is_content_of(path) is same
    path.write_bytes(b"photo")
    assert not Listed(one.key, one.size_bytes, f'"{one.etag.strip(chr(34))}-2"').is_content_of(path)


def test_content_that_was_damaged_in_the_store_is_not_taken(album: Album, tmp_path: Path) -> None:
    (one,) = listed(album, a=b"photo" * 1000)
    album.damage("a.jpg")

    with pytest.raises(InputError, match=rf"album/ada/a\.jpg did not arrive as it was stored, {ATTEMPTS} times \(.*\)"):
        Bucket.at("s3://album/ada").fetch(one, tmp_path / "a.jpg")


@pytest.mark.parametrize("content", [b"another", b"photO"], ids=["other size", "same size"])
def test_what_changed_since_it_was_listed_is_not_taken_for_it(album: Album, tmp_path: Path, content: bytes) -> None:
    (one,) = listed(album, a=b"photo")
    album.put("a.jpg", content)

    with pytest.raises(InputError, match=r"ada/a\.jpg was changed or removed while it was read; run again"):
        Bucket.at("s3://album/ada").fetch(one, tmp_path / "a.jpg")


def test_a_connection_that_breaks_off_is_tried_again(
    album: Album, s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = listed(album, a=b"photo" * 10_000)
    with BreakingOff(s3_server, first_bytes=20_000) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        Bucket.at("s3://album/ada").fetch(one, tmp_path / "a.jpg")

    assert (tmp_path / "a.jpg").read_bytes() == b"photo" * 10_000


def test_a_bucket_that_is_not_there_is_one_sentence(album: Album) -> None:
    with pytest.raises(InputError, match=r"s3://nobody/x cannot be read \(NoSuchBucket: .*\); check the bucket"):
        Bucket.at("s3://nobody/x").listed(most=1)


def asked_once(address: str) -> Bucket:
    config = Config(retries={"max_attempts": 0}, region_name="us-east-1")
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    return Bucket(S3Store(boto3.client("s3", endpoint_url=address, config=config, **keys), "album", "ada"))


def test_a_server_that_does_not_answer_is_one_sentence_and_can_be_waited_for() -> None:
    with pytest.raises(StoreError, match=r"s3://album/ada cannot be reached \(.*\); check AWS_ENDPOINT_URL_S3"):
        asked_once("http://127.0.0.1:9").listed(most=1)


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        ("500 Internal Server Error", "InternalError", StoreError),
        ("503 Slow Down", "SlowDown", StoreError),
        ("429 Too Many Requests", "TooManyRequests", StoreError),
        ("400 Bad Request", "RequestTimeout", StoreError),
        ("403 Forbidden", "InvalidAccessKeyId", InputError),
        ("403 Forbidden", "AccessDenied", InputError),
        ("400 Bad Request", "AuthorizationHeaderMalformed", InputError),
    ],
)
def test_what_a_server_answers_is_waited_for_if_it_may_pass(
    album: Album, status: str, code: str, error: type[Exception]
) -> None:
    with unwell(status, code, times=9) as address:
        for ask in (lambda bucket: bucket.listed(most=1), Bucket.itself):
            with pytest.raises(error, match=rf"s3://album/ada cannot be read \({code}: .*\); check the bucket"):
                ask(asked_once(address))


def test_a_connection_that_always_breaks_off_can_be_waited_for(album: Album, s3_server: str, tmp_path: Path) -> None:
    (one,) = listed(album, a=b"photo" * 10_000)
    with (
        BreakingOff(s3_server, first_bytes=20_000, times=ATTEMPTS) as address,
        pytest.raises(StoreError, match=rf"ada/a\.jpg did not arrive as it was stored, {ATTEMPTS} times \(.*\)"),
    ):
        asked_once(address).fetch(one, tmp_path / "a.jpg")


class BreakingOff:
    """A relay to a server; its first connections end after some bytes of the answer."""

    def __init__(self, server: str, *, first_bytes: int, times: int = 1) -> None:
        parts = urlsplit(server)
        self._server, self._first_bytes = (str(parts.hostname), int(parts.port or 80)), first_bytes
        self._times = times
        self._door = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> str:
        threading.Thread(target=self._serve, daemon=True).start()
        return f"http://127.0.0.1:{self._door.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._door.close()

    def _serve(self) -> None:
        for number in itertools.count():
            try:
                guest, _ = self._door.accept()
            except OSError:
                return
            with guest, socket.create_connection(self._server) as host:
                host.sendall(guest.recv(1 << 16))
                host.settimeout(1)
                self._pass_on(host, guest, self._first_bytes if number < self._times else None)

    @staticmethod
    def _pass_on(host: socket.socket, guest: socket.socket, left: int | None) -> None:
        try:
            while (left is None or left > 0) and (part := host.recv(1 << 12)):
                guest.sendall(part)
                left = None if left is None else left - len(part)
        except TimeoutError:
            return
