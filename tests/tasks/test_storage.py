from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tasks.storage import LOCKS, ConflictError, FolderStore, S3Store, Store, open_store
from zimage.errors import InputError

BUCKET = "faces"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of a real HTTP server that speaks S3."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    store = S3Store.connect(BUCKET, "project")
    yield store
    store.delete("")
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "store")
    found: Store = request.getfixturevalue("bucket")
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "lora"
    path.write_bytes(b"weights")
    return path


def content(store: Store, key: str, tmp_path: Path) -> bytes:
    store.get(key, tmp_path / "got")
    return (tmp_path / "got").read_bytes()


def test_the_first_to_put_wins_and_the_object_never_changes(store: Store, source: Path, tmp_path: Path) -> None:
    assert store.put_if_absent("ada/1/lora", source)
    source.write_bytes(b"others")

    assert not store.put_if_absent("ada/1/lora", source)
    assert content(store, "ada/1/lora", tmp_path) == b"weights"


def test_of_many_at_once_exactly_one_puts(store: Store, source: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda _: store.put_if_absent("ada/lora", source), range(16)))

    assert won.count(True) == 1


def test_a_swap_needs_the_version_it_read(store: Store) -> None:
    first = store.swap("ada/state.json", b"1", None)
    second = store.swap("ada/state.json", b"2", first)

    with pytest.raises(ConflictError, match=r"ada/state\.json was changed by somebody else"):
        store.swap("ada/state.json", b"3", first)
    with pytest.raises(ConflictError, match="was changed by somebody else"):
        store.swap("ada/state.json", b"3", None)
    found = store.read("ada/state.json")
    assert found is not None
    assert (found.content, found.tag) == (b"2", second)


def test_of_many_swaps_at_once_none_is_lost(store: Store) -> None:
    store.swap("ada/count", b"0", None)

    def add(_: int) -> None:
        while True:
            found = store.read("ada/count")
            assert found is not None
            try:
                store.swap("ada/count", str(int(found.content) + 1).encode(), found.tag)
            except ConflictError:
                continue
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(12)))

    found = store.read("ada/count")
    assert found is not None
    assert found.content == b"12"


def test_a_swap_of_what_was_deleted_is_a_conflict(store: Store) -> None:
    tag = store.swap("ada/state.json", b"1", None)
    store.delete("ada")

    with pytest.raises(ConflictError):
        store.swap("ada/state.json", b"2", tag)


def test_what_is_absent_reads_as_none_and_is_refused_as_a_file(store: Store, tmp_path: Path) -> None:
    assert store.read("ada/state.json") is None
    with pytest.raises(InputError, match=r"There is no ada/state\.json in "):
        store.get("ada/state.json", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_keys_are_listed_below_a_folder_and_not_below_its_namesakes(store: Store, source: Path) -> None:
    for key in ("ada/1/lora", "ada/1/report", "adam/1/lora"):
        store.put_if_absent(key, source)

    assert store.keys("ada") == ["ada/1/lora", "ada/1/report"]
    assert store.keys("") == ["ada/1/lora", "ada/1/report", "adam/1/lora"]
    assert store.keys("eve") == []


def test_deleting_takes_all_below_and_nothing_beside(store: Store, source: Path) -> None:
    for key in ("ada/1/lora", "ada/2/lora", "adam/1/lora"):
        store.put_if_absent(key, source)

    assert store.delete("ada") == 2
    assert store.keys("") == ["adam/1/lora"]


def test_deleting_in_a_versioned_bucket_leaves_no_version(bucket: S3Store) -> None:
    first = bucket.swap("ada/state.json", b"1", None)
    bucket.swap("ada/state.json", b"2", first)
    bucket.client.delete_object(Bucket=BUCKET, Key="project/ada/state.json")
    bucket.client.create_multipart_upload(Bucket=BUCKET, Key="project/ada/half")

    assert bucket.delete("ada") == 3  # two versions and the mark of a deletion

    left = bucket.client.list_object_versions(Bucket=BUCKET)
    assert not left.get("Versions")
    assert not left.get("DeleteMarkers")
    assert not bucket.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads")


def test_a_folder_store_tidies_up_empty_folders(tmp_path: Path, source: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put_if_absent("ada/1/lora", source)

    store.delete("ada")

    assert [path.name for path in store.root.iterdir()] == [LOCKS]


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "ada/../../x", "ada//x", "ada/", f"{LOCKS}/x", "./x"])
def test_a_folder_store_writes_nowhere_else(tmp_path: Path, source: Path, key: str) -> None:
    with pytest.raises(InputError, match="is no key of a store"):
        FolderStore(tmp_path / "store").put_if_absent(key, source)


def test_an_address_opens_the_store_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    folder, s3 = open_store(str(tmp_path)), open_store("s3://faces/a/b/")

    assert isinstance(folder, FolderStore) and folder.root == tmp_path
    assert isinstance(s3, S3Store) and (s3.bucket, s3.prefix) == ("faces", "a/b")


@pytest.mark.parametrize("address", ["gs://faces", "http://host/x", "s3://"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is no store; give a folder or s3://bucket/prefix"):
        open_store(address)
