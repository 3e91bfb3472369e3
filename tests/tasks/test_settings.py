from pathlib import Path

import pytest

from tasks.settings import PROJECT, Signing, from_environment


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


def test_the_demo_works_in_the_project_itself() -> None:
    assert from_environment().workspace("demo") == PROJECT


def test_pictures_are_signed_where_a_key_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert from_environment().signing is None
    monkeypatch.setenv("ZIMAGE_C2PA_CERTIFICATES", str(tmp_path / "certificates.pem"))
    monkeypatch.setenv("ZIMAGE_C2PA_KEY", str(tmp_path / "key.pem"))

    assert from_environment().signing == Signing(tmp_path / "certificates.pem", tmp_path / "key.pem", "es256", "")
