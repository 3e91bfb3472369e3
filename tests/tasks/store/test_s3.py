import random
import re
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from tasks.settings import PROJECT, Settings
from tasks.store.protocol import clear
from tasks.store.s3 import (
    LOCKS,
    ConflictError,
    FolderStore,
    Inventory,
    MissingError,
    S3Store,
    Store,
    StoreError,
    open_store,
    store_errors,
)
from tasks.transfer.state import checkout
from tests.tasks.faults import lacking, unwell
from zimage.core.errors import InputError

BUCKET = "faces"


@pytest.fixture
def bucket(s3: None) -> Iterator[S3Store]:
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
    first = store.compare_and_swap("ada/state.json", b"1", None)
    second = store.compare_and_swap("ada/state.json", b"2", first)

    with pytest.raises(ConflictError, match=r"ada/state\.json was changed by somebody else"):
        store.compare_and_swap("ada/state.json", b"3", first)
    with pytest.raises(ConflictError, match="was changed by somebody else"):
        store.compare_and_swap("ada/state.json", b"3", None)
    found = store.read("ada/state.json")
    assert found is not None
    assert (found.content, found.tag) == (b"2", second)


def test_of_many_swaps_at_once_none_is_lost(store: Store) -> None:
    store.compare_and_swap("ada/count", b"0", None)

    def add(_: int) -> None:
        while True:
            found = store.read("ada/count")
            assert found is not None
            try:
                store.compare_and_swap("ada/count", str(int(found.content) + 1).encode(), found.tag)
            except ConflictError:
                continue
            return

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(12)))

    found = store.read("ada/count")
    assert found is not None
    assert found.content == b"12"


def test_a_swap_of_what_was_deleted_is_a_conflict(store: Store) -> None:
    tag = store.compare_and_swap("ada/state.json", b"1", None)
    store.delete("ada")

    with pytest.raises(ConflictError):
        store.compare_and_swap("ada/state.json", b"2", tag)


def test_what_is_absent_reads_as_none_and_is_refused_as_a_file(store: Store, tmp_path: Path) -> None:
    assert store.read("ada/state.json") is None
    with pytest.raises(MissingError, match=r"There is no ada/state\.json in "):
        store.get("ada/state.json", tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_keys_are_listed_below_a_folder_and_not_below_its_namesakes(store: Store, source: Path) -> None:
    for key in ("ada/1/lora", "ada/1/report", "adam/1/lora"):
        store.put_if_absent(key, source)

    assert store.keys("ada") == ["ada/1/lora", "ada/1/report"]
    assert store.keys("") == ["ada/1/lora", "ada/1/report", "adam/1/lora"]
    assert store.keys("eve") == []


def test_names_are_those_right_below(store: Store, source: Path) -> None:
    for key in ("subjects/ada/1/lora", "subjects/ada/2/lora", "subjects/ada/state", "subjects/eve/state", "other/x"):
        store.put_if_absent(key, source)

    assert store.list_children("subjects") == ["ada", "eve"]
    assert store.list_children("subjects/ada") == ["1", "2", "state"]
    assert store.list_children("subjects/nobody") == []
    assert store.list_children("") == ["other", "subjects"]
    assert store.list_children("nothing") == []


def test_a_stamp_changes_with_its_object_only(store: Store) -> None:
    first = store.compare_and_swap("ada/state", b"1", None)
    store.compare_and_swap("ada/other", b"1", None)
    before = store.stamps("ada")

    store.compare_and_swap("ada/state", b"22", first)

    after = store.stamps("ada")
    assert list(before) == list(after) == ["ada/other", "ada/state"]
    assert after["ada/other"] == before["ada/other"]
    assert after["ada/state"] != before["ada/state"]


def test_sizes_are_those_of_all_below(store: Store, source: Path) -> None:
    store.put_if_absent("ada/1/lora", source)
    store.compare_and_swap("ada/state.json", b"", None)
    store.put_if_absent("adam/lora", source)

    assert store.sizes("ada") == {"ada/1/lora": len(b"weights"), "ada/state.json": 0}


def test_deleting_takes_all_below_and_nothing_beside(store: Store, source: Path) -> None:
    for key in ("ada/1/lora", "ada/2/lora", "adam/1/lora"):
        store.put_if_absent(key, source)

    assert store.delete("ada") == 2
    assert store.keys("") == ["adam/1/lora"]


def test_only_what_is_chosen_is_deleted(store: Store, source: Path) -> None:
    for key in ("ada/1/lora", "ada/1/manifest", "ada/2/manifest"):
        store.put_if_absent(key, source)

    assert store.delete("ada", only=lambda key: key.endswith("/manifest")) == 2
    assert store.keys("") == ["ada/1/lora"]


def test_deleting_in_a_versioned_bucket_leaves_no_version(bucket: S3Store) -> None:
    first = bucket.compare_and_swap("ada/state.json", b"1", None)
    bucket.compare_and_swap("ada/state.json", b"2", first)
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

    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../x", "ada/../../x", "ada//x", "ada/", f"{LOCKS}/x", "./x"])
def test_a_folder_store_writes_nowhere_else(tmp_path: Path, source: Path, key: str) -> None:
    with pytest.raises(InputError, match="is no key of a store"):
        FolderStore(tmp_path / "store").put_if_absent(key, source)


def test_an_address_opens_the_store_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    folder, s3 = open_store(str(tmp_path)), open_store("s3://faces/a/b/")

    assert isinstance(folder, FolderStore) and folder.root == tmp_path
    assert isinstance(s3, S3Store) and (s3.bucket, s3.prefix) == ("faces", "a/b")


@pytest.mark.parametrize("below", ["", "store"])
def test_a_store_in_a_file_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(InputError, match=r"is no store, as .*/file is a file; give a folder or s3://bucket/prefix"):
        open_store(str(tmp_path / "file" / below))


@pytest.mark.parametrize("address", ["gs://faces", "http://host/x", "s3://"])
def test_an_address_of_another_kind_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is no store; give a folder or s3://bucket/prefix"):
        open_store(address)


def test_a_part_that_begins_with_a_dot_or_cannot_be_printed_is_no_key(store: Store) -> None:
    for key in ("ada/.part", "ada\n", "ada/\x00", "a\\b", "a" * 901):
        with pytest.raises(InputError, match="is no key of a store"):
            store.read(key)


def test_what_is_held_is_told_byte_for_byte(store: Store, source: Path) -> None:
    store.put_if_absent("ada/lora", source)

    assert store.holds("ada/lora", source)
    assert not store.holds("ada/other", source)
    source.write_bytes(b"WEIGHTS")
    assert not store.holds("ada/lora", source)


def test_a_damaged_object_is_replaced(store: Store, source: Path, tmp_path: Path) -> None:
    store.put_if_absent("ada/lora", source)
    source.write_bytes(b"as it should have been")

    store.overwrite("ada/lora", source)

    assert content(store, "ada/lora", tmp_path) == b"as it should have been"


def test_an_inventory_counts_all_there_is_and_nothing_after_deletion(store: Store, source: Path) -> None:
    store.put_if_absent("ada/1/lora", source)
    store.put_if_absent("adam/1/lora", source)

    assert store.inventory("ada") == Inventory(objects=1, versions=1, bytes=len(b"weights"))
    store.delete("ada")
    assert store.inventory("ada").is_empty
    assert store.inventory("adam").objects == 1


def test_deleting_a_key_takes_that_object_only(store: Store, source: Path) -> None:
    for key in ("ada/1/lora", "ada/1/lora2"):
        store.put_if_absent(key, source)

    assert store.delete("ada/1/lora") == 1
    assert store.keys("") == ["ada/1/lora2"]


def test_what_a_killed_writer_left_in_a_folder_is_seen_by_nobody_and_goes(tmp_path: Path, source: Path) -> None:
    store = FolderStore(tmp_path / "store")
    store.put_if_absent("ada/1/lora", source)
    (store.root / "ada/1/.0f.part").write_bytes(b"half")

    assert store.keys("ada") == ["ada/1/lora"]
    assert store.inventory("ada").uploads == 1
    store.delete("ada")
    assert not (store.root / "ada").exists()


def test_too_large_an_object_is_not_fetched(store: Store, source: Path, tmp_path: Path) -> None:
    store.put_if_absent("ada/lora", source)

    with pytest.raises(InputError, match="has 7 bytes, more than 6"):
        store.get("ada/lora", tmp_path / "got", max_bytes=6)
    assert not (tmp_path / "got").exists()


MIB = 2**20


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large"
    path.write_bytes(random.Random(0).randbytes(11 * MIB))
    return path


def test_a_large_file_goes_in_parts_and_appears_whole(bucket: S3Store, large: Path, tmp_path: Path) -> None:
    parts = replace(bucket, part_bytes=5 * MIB)

    assert parts.put_if_absent("ada/lora", large)
    assert parts.holds("ada/lora", large)
    assert content(bucket, "ada/lora", tmp_path) == large.read_bytes()
    large.write_bytes(b"others" * 2 * MIB)
    assert not parts.put_if_absent("ada/lora", large)
    assert not parts.holds("ada/lora", large)
    assert bucket.inventory("ada").uploads == 0


def test_an_upload_goes_on_where_it_stopped(bucket: S3Store, large: Path, tmp_path: Path) -> None:
    parts = replace(bucket, part_bytes=5 * MIB)
    begun = bucket.client.create_multipart_upload(Bucket=BUCKET, Key="project/ada/lora", ChecksumAlgorithm="SHA256")
    where = {"Bucket": BUCKET, "Key": "project/ada/lora", "UploadId": begun["UploadId"]}
    for number, piece in ((1, large.read_bytes()[: 5 * MIB]), (2, b"damaged")):
        bucket.client.upload_part(**where, PartNumber=number, Body=piece)
    sent: list[int] = []
    bucket.client.meta.events.register(
        "before-call.s3.UploadPart", lambda params, **_: sent.append(int(params["query_string"]["partNumber"]))
    )

    assert parts.put_if_absent("ada/lora", large)

    assert sorted(sent) == [2, 3]
    assert content(bucket, "ada/lora", tmp_path) == large.read_bytes()


def test_a_link_opens_one_object_without_keys_and_for_a_short_while(bucket: S3Store, source: Path) -> None:
    bucket.put_if_absent("ada/report.html", source)

    address = bucket.link("ada/report.html", seconds=60)

    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"weights"
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"  # so that a browser shows it
    assert "X-Amz-Expires=60" in address
    with pytest.raises(InputError, match="A link may hold for up to 86400 s, not for 604800"):
        bucket.link("ada/report.html", seconds=604800)


def test_a_link_leads_where_a_browser_finds_the_bucket(bucket: S3Store, s3_server: str, source: Path) -> None:
    bucket.put_if_absent("ada/report.html", source)
    elsewhere = s3_server.replace("127.0.0.1", "localhost")

    address = replace(bucket, pages=elsewhere).link("ada/report.html", seconds=60)

    assert address.startswith(f"{elsewhere}/")
    with urllib.request.urlopen(address) as answer:
        assert answer.read() == b"weights"


def test_missing_keys_of_s3_are_a_sentence(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers keys
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))

    with pytest.raises(InputError, match="There are no keys for s3://faces/x; set AWS_ACCESS_KEY_ID"):
        S3Store.connect(BUCKET, "x").read("ada/state.json")


def test_a_bucket_that_is_not_there_is_a_sentence(bucket: S3Store) -> None:
    with pytest.raises(InputError, match="There is no bucket nobodys; make it as infra/access says"):
        S3Store.connect("nobodys", "x").keys("")


def test_a_store_that_is_away_can_be_tried_again_later(bucket: S3Store) -> None:
    once = Config(retries={"total_max_attempts": 1})
    away = replace(bucket, client=boto3.client("s3", endpoint_url="http://127.0.0.1:9", config=once))

    with pytest.raises(
        StoreError, match=r"s3://faces/project did not answer `get_object`: Could not connect"
    ) as raised:
        away.read("ada/state.json")
    assert isinstance(raised.value, store_errors())


UNDECIDED = ("409 Conflict", "ConditionalRequestConflict")


def test_a_condition_that_could_not_be_decided_is_asked_again(bucket: S3Store, source: Path, tmp_path: Path) -> None:
    with unwell(*UNDECIDED, times=2, method="PUT") as address:
        store = replace(bucket, client=boto3.client("s3", endpoint_url=address))

        assert store.put_if_absent("ada/lora", source)
    assert content(bucket, "ada/lora", tmp_path) == b"weights"

    tag = bucket.compare_and_swap("ada/state", b"1", None)
    with unwell(*UNDECIDED, times=1, method="PUT") as address:
        store = replace(bucket, client=boto3.client("s3", endpoint_url=address))

        store.compare_and_swap("ada/state", b"2", tag)
    assert content(bucket, "ada/state", tmp_path) == b"2"


def test_a_condition_that_can_never_be_decided_can_be_tried_again_later(bucket: S3Store, source: Path) -> None:
    with unwell(*UNDECIDED, times=99, method="PUT") as address:
        store = replace(bucket, client=boto3.client("s3", endpoint_url=address))

        with pytest.raises(StoreError, match=r"ada/lora in .* was written or deleted by others 5 times; run again"):
            store.put_if_absent("ada/lora", source)


def test_an_undecided_upload_in_parts_is_given_up_and_the_next_one_begins_anew(
    bucket: S3Store, large: Path, tmp_path: Path
) -> None:
    parts = replace(bucket, part_bytes=5 * MIB)
    bucket.client.create_multipart_upload(Bucket=BUCKET, Key="project/ada/lora", ChecksumAlgorithm="SHA256")

    with unwell(*UNDECIDED, times=1, method="POST") as address:
        undecided = replace(parts, client=boto3.client("s3", endpoint_url=address))
        with pytest.raises(StoreError, match=r"ada/lora in .* was written or deleted by others meanwhile; run again"):
            undecided.put_if_absent("ada/lora", large)

    assert bucket.inventory("ada").is_empty
    assert parts.put_if_absent("ada/lora", large)
    assert content(bucket, "ada/lora", tmp_path) == large.read_bytes()


def test_an_upload_that_somebody_ends_while_it_is_sent_can_be_tried_again(bucket: S3Store, large: Path) -> None:
    others = boto3.client("s3")
    begun = others.create_multipart_upload(Bucket=BUCKET, Key="project/ada/lora", ChecksumAlgorithm="SHA256")

    def end(**_: object) -> None:
        others.abort_multipart_upload(Bucket=BUCKET, Key="project/ada/lora", UploadId=begun["UploadId"])

    bucket.client.meta.events.register("before-call.s3.ListParts", end)

    with pytest.raises(StoreError, match=r"The upload of ada/lora to s3://faces/project is gone; run again") as raised:
        replace(bucket, part_bytes=5 * MIB).put_if_absent("ada/lora", large)
    assert isinstance(raised.value, store_errors())


CONDITIONS = ["If-Match", "If-None-Match"]


@pytest.fixture
def another(s3: None) -> Iterator[S3Store]:
    """A bucket that no process has seen to honour conditions, without versions."""
    client = boto3.client("s3")
    name = f"lacking-{random.randbytes(8).hex()}"
    client.create_bucket(Bucket=name)
    yield S3Store.connect(name, "project")
    for found in client.list_objects_v2(Bucket=name).get("Contents", []):
        client.delete_object(Bucket=name, Key=found["Key"])
    client.delete_bucket(Bucket=name)


def at(store: S3Store, address: str) -> S3Store:
    return replace(store, client=boto3.client("s3", endpoint_url=address))


@pytest.mark.parametrize("ignored", [CONDITIONS, *([each] for each in CONDITIONS)], ids="+".join)
def test_a_server_that_ignores_a_condition_is_refused_before_it_overwrites_anything(
    another: S3Store, source: Path, ignored: list[str]
) -> None:
    with lacking(ignored=ignored) as address:
        store = at(another, address)
        theirs = another.client.put_object(Bucket=another.bucket, Key="project/eve/state.json", Body=b"eve")["ETag"]

        with pytest.raises(ConflictError):
            store.compare_and_swap("eve/state.json", b"ada", None)
        with pytest.raises(InputError) as refused:
            store.compare_and_swap("ada/state.json", b"1", None)
        with pytest.raises(InputError):
            store.put_if_absent("ada/lora", source)

    assert re.search(
        rf"The server of s3://{another.bucket}/project \(Werkzeug/.*\) ignores the condition {ignored[0]} of a write, "
        r"so one writer .*; use another server \(infra/access/servers\.md .*\) or a folder\.",
        str(refused.value),
    )
    eve = another.read("eve/state.json")
    assert eve is not None and (eve.content, eve.tag) == (b"eve", theirs)
    left = {"ada/state.json", "ada/lora"} if ignored == ["If-None-Match"] else set()  # new ones, and nobody else's
    assert set(another.keys("")) - {"eve/state.json"} == left


@pytest.mark.parametrize("refused", CONDITIONS)
def test_a_server_that_does_not_know_a_condition_is_refused_with_the_remedy(another: S3Store, refused: str) -> None:
    with (
        lacking(refused=[refused]) as address,
        pytest.raises(InputError, match=rf"does not implement the condition {refused} of a write, .*; use another"),
    ):
        at(another, address).compare_and_swap("ada/state.json", b"1", None)

    assert another.keys("") == []


def test_a_policy_that_asks_for_another_condition_keeps_nobody_from_writing(another: S3Store) -> None:
    with unwell("403 Forbidden", "AccessDenied", times=1, method="PUT") as address:
        at(another, address).compare_and_swap("ada/releases/1/manifest.json", b"{}", None)

    assert another.keys("") == ["ada/releases/1/manifest.json"]


def test_a_server_that_honours_conditions_is_asked_once_and_keeps_nothing_of_it(another: S3Store) -> None:
    another.client.put_bucket_versioning(Bucket=another.bucket, VersioningConfiguration={"Status": "Enabled"})
    sent: list[str] = []
    for name in ("PutObject", "DeleteObjects", "DeleteObject"):
        another.client.meta.events.register(f"before-call.s3.{name}", lambda model, **_: sent.append(model.name))

    another.read("ada/state.json")
    assert sent == []
    first = another.compare_and_swap("ada/state.json", b"1", None)
    assert sent == ["PutObject"] * 3  # one that must fail, the object, and another that must fail
    another.compare_and_swap("ada/state.json", b"2", first)
    assert sent == ["PutObject"] * 4

    assert another.inventory("") == Inventory(objects=1, versions=2, bytes=2)
    another.delete("")


@pytest.mark.parametrize("how", ["ignored", "refused"])
def test_where_a_server_lists_no_versions_and_keeps_none_everything_can_be_deleted(
    another: S3Store, source: Path, how: str
) -> None:
    lacks = {how: ["versions"]}
    with lacking(**lacks) as address:
        store = at(another, address)
        store.require_usable("ada/state.json")
        for key in ("ada/1/lora", "adam/1/lora"):
            store.put_if_absent(key, source)

        assert store.inventory("ada") == Inventory(objects=1, versions=1, bytes=len(b"weights"))
        clear(store, "ada")

        assert store.inventory("ada").is_empty
        assert store.keys("") == ["adam/1/lora"]


def test_where_a_server_keeps_versions_and_cannot_list_them_nothing_is_stored(another: S3Store) -> None:
    another.client.put_bucket_versioning(Bucket=another.bucket, VersioningConfiguration={"Status": "Enabled"})
    with (
        lacking(refused=["versions"]) as address,
        pytest.raises(
            InputError, match="keeps versions, and its server cannot list them, so nobody could be forgotten"
        ),
    ):
        at(another, address).require_usable("ada/state.json")


@pytest.mark.parametrize(("lacks", "said"), [(["versions"], "cannot list them"), (["If-Match"], "condition If-Match")])
def test_a_store_that_cannot_be_used_is_refused_before_the_first_photo(
    another: S3Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: list[str], said: str
) -> None:
    another.client.put_bucket_versioning(Bucket=another.bucket, VersioningConfiguration={"Status": "Enabled"})
    with lacking(refused=lacks) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        settings = Settings(PROJECT, tmp_path / "workspaces", f"s3://{another.bucket}/project", address)

        with pytest.raises(InputError, match=said):
            checkout.fn(settings, "ada")

    assert not (settings.workspace("ada") / "data" / "photos").exists()
    assert another.keys("") == []
