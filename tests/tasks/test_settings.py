import subprocess
import sys
from pathlib import Path

import pytest

from tasks.settings import PROJECT, Signing, from_environment, inherited
from zimage.core.errors import InputError


def test_everything_lies_in_the_project_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZIMAGE_WORKSPACES", raising=False)
    monkeypatch.delenv("ZIMAGE_STORE", raising=False)

    settings = from_environment()

    assert settings.workspace("ada") == PROJECT / "workspaces" / "ada"
    assert settings.store == str(PROJECT / "store")


def test_the_environment_moves_workspaces_and_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path))
    monkeypatch.setenv("ZIMAGE_STORE", "s3://faces/project")

    settings = from_environment()

    assert settings.workspace("ada") == tmp_path / "ada"
    assert settings.store == "s3://faces/project"


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("./store", "here/store"),
        ("../store", "store"),
        ("~/store", "home/store"),
        ("file://{root}/my%20store", "my store"),
        ("file://localhost{root}/store", "store"),
        ("", None),
    ],
)
def test_an_address_means_the_same_folder_wherever_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, folder: str | None
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("ZIMAGE_STORE", "ZIMAGE_WORKSPACES"):
        monkeypatch.setenv(name, address.format(root=tmp_path))
    code = "from tasks.settings import from_environment as f; print(f().store, f().workspaces, sep='\\n')"

    settings = from_environment()
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, env=inherited(), capture_output=True, text=True, check=True
    )

    expected = [
        str((tmp_path / folder).resolve()) if folder else str(PROJECT / name) for name in ("store", "workspaces")
    ]
    assert [str(Path(settings.store).resolve()), str(settings.workspaces.resolve())] == expected
    assert child.stdout.splitlines() == [settings.store, str(settings.workspaces)]


@pytest.mark.parametrize("address", ["file://store", "file://server/share/store"])
def test_a_file_address_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ZIMAGE_STORE", address)

    with pytest.raises(InputError, match=r"is no address of a folder on this machine; write file:///ABSOLUTE/PATH"):
        from_environment()


def test_the_demo_works_in_the_project_itself() -> None:
    assert from_environment().workspace("demo") == PROJECT


def test_pictures_are_signed_where_a_key_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_environment().signing is None
    monkeypatch.setenv("ZIMAGE_C2PA_CERTIFICATES", str(tmp_path / "certificates.pem"))
    monkeypatch.setenv("ZIMAGE_C2PA_KEY", str(tmp_path / "key.pem"))

    assert from_environment().signing == Signing(tmp_path / "certificates.pem", tmp_path / "key.pem", "es256", "")
