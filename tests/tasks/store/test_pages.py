import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.store import pages
from tasks.store.pages import SECRET, served
from tasks.store.s3 import FolderStore
from zimage.core.errors import InputError

KEY = "subjects/ada/pages/0123456789abcdef/report.html"
TEXT = "<p>Ada's report"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FolderStore]:
    """A store with a page in it, while it is served."""
    page = tmp_path / "report.html"
    page.write_text(TEXT)
    with served(tmp_path / "store", 0) as address:
        store = FolderStore(tmp_path / "store", pages=address)
        store.put_if_absent(KEY, page)
        store.put_if_absent("subjects/ada/dvc/photo.html", page)
        store.put_if_absent("subjects/bob/pages/0123456789abcdef/report.html", page)
        yield store


def asked(address: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_link_opens_its_page_and_says_how_it_may_be_used(store: FolderStore) -> None:
    link = store.link(KEY, seconds=60)

    assert link.startswith("http://127.0.0.1:")
    assert asked(link) == (200, TEXT)
    with urllib.request.urlopen(link) as answer:
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; img-src data: 'self';")
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "Python" not in answer.headers["Server"]


def test_a_link_that_has_expired_says_what_to_do(store: FolderStore) -> None:
    status, said = asked(store.link(KEY, seconds=-1))

    assert status == 410
    assert "This link has expired. Start `personalize`, or `publish`, for this person again" in said


@pytest.mark.parametrize(
    "changed",
    [
        ("ada", "bob"),
        ("ada/", "ada/../bob/"),
        ("expires=", "expires=9"),
        ("signature=", "signature=0"),
        ("&signature=", "&x="),
    ],
)
def test_a_link_opens_nothing_else(store: FolderStore, changed: tuple[str, str]) -> None:
    assert asked(store.link(KEY, seconds=60).replace(*changed)) == (404, pages.UNKNOWN)


@pytest.mark.parametrize(
    "key",
    [
        "subjects/ada/dvc/photo.html",
        "subjects/ada/pages/0123456789abcdef",
        "subjects/ada/pages/0123456789abcdef/",
        "subjects/ada/pages/../../../.pages",
        "subjects/ada/pages/0123456789abcdef/..%2freport.html",
        SECRET,
        "",
    ],
)
def test_a_signature_opens_nothing_but_pages(store: FolderStore, key: str) -> None:
    secret = pages.secret_of(store.root)
    assert secret is not None

    assert asked(pages.signed(store.pages, key, secret, expires=int(time.time()) + 60)) == (404, pages.UNKNOWN)


def test_a_link_in_the_store_leads_nowhere_outside(store: FolderStore, tmp_path: Path) -> None:
    key = "subjects/ada/pages/0123456789abcdef/other.html"
    (store.root / key).symlink_to(tmp_path / "report.html")

    assert asked(store.link(key, seconds=60)) == (404, pages.UNKNOWN)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_done_but_to_read(store: FolderStore, method: str) -> None:
    connection = http.client.HTTPConnection(store.pages.removeprefix("http://"), timeout=10)
    connection.request(method, f"/{KEY}")

    assert connection.getresponse().status == 501
    connection.close()


def test_a_page_goes_with_its_person(store: FolderStore) -> None:
    link = store.link(KEY, seconds=60)
    store.delete("subjects/ada")

    assert asked(link) == (404, pages.UNKNOWN)
    assert "the person was forgotten" in pages.UNKNOWN


def test_a_link_outlives_the_server_and_its_secret_is_for_its_owner_only(store: FolderStore, tmp_path: Path) -> None:
    link = store.link(KEY, seconds=60)
    secret = store.root / SECRET

    with served(store.root, 0) as address:
        assert asked(link.replace(store.pages, address)) == (200, TEXT)
    assert secret.stat().st_mode & 0o777 == 0o600
    assert SECRET not in store.keys("") and store.inventory("").uploads == 0
    assert [path.name for path in store.root.glob(f"{SECRET}*")] == [SECRET]


def test_a_port_that_is_taken_is_a_sentence(store: FolderStore) -> None:
    port = int(store.pages.rpartition(":")[2])

    with pytest.raises(InputError, match=f"Port {port}, for pages, is taken"), served(store.root, port):
        pass


def test_where_nobody_serves_pages_a_link_is_the_file_s(tmp_path: Path) -> None:
    store = FolderStore(tmp_path, pages="http://127.0.0.1:1")

    assert store.link(KEY, seconds=60) == (tmp_path / KEY).as_uri()
