"""Who published a release: real keys, real tampering in the store, and openssl as the second opinion."""

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from flows.__main__ import main
from tasks.release.channels import channel_key, promote
from tasks.release.publish import Release
from tasks.release.publish import publish as publish_task
from tasks.settings import Signing
from tasks.store.releases import SIGNATURE, Published, published
from tasks.store.s3 import FolderStore
from tasks.store.signature import is_signature, public_key, public_key_of, sign
from tests.tasks.certificates import PEM, Signer, signer
from tests.tasks.finished import finished, lora
from zimage.core.errors import InputError

GUIDE = Path(__file__).parents[3] / "infra" / "guide.md"
TRADITIONAL = serialization.PrivateFormat.PKCS8
KEYS: dict[str, Callable[[], Any]] = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "P-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
}
OPENSSL = {
    "P-256": ["dgst", "-sha256", "-verify", "public.pem", "-signature", "signature", "content"],
    "P-384": ["dgst", "-sha384", "-verify", "public.pem", "-signature", "signature", "content"],
    "P-521": ["dgst", "-sha512", "-verify", "public.pem", "-signature", "signature", "content"],
    "RSA": [*("dgst", "-sha256", "-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"),
            *("-verify", "public.pem", "-signature", "signature", "content")],
    "Ed25519": ["pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", "public.pem", "-sigfile", "signature", "-in",
                "content"],
}  # fmt: skip
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not here")


@pytest.fixture(scope="module")
def who(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return signer(tmp_path_factory.mktemp("signer") / "files")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderStore:
    monkeypatch.setenv("ZIMAGE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("ZIMAGE_WORKSPACES", str(tmp_path / "workspaces"))
    monkeypatch.chdir(tmp_path)
    return FolderStore(tmp_path / "store")


@pytest.fixture
def release(store: FolderStore, tmp_path: Path, who: Signer) -> Release:
    """A signed release of ada, in production."""
    made = publish(tmp_path, store, Signing(who.certificates, who.key))
    promote(store, "ada", "production", made.name)
    return made


def publish(tmp_path: Path, store: FolderStore, signing: Signing | None, *, seed: int = 1) -> Release:
    return publish_task.fn(finished(tmp_path / "ada", seed=seed), "ada", store, signing=signing)


def public_file(who: Signer, path: Path) -> Path:
    content = public_key_of(who.key).public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(content)
    return path


def found(store: FolderStore, release: Release) -> Published:
    there = published(store, "ada", release.name)
    assert there is not None
    return there


def signature_of(store: FolderStore, release: Release) -> Path:
    (path,) = (store.root / release.key).glob("manifest-*.sig")
    return path


def rewrite(store: FolderStore, release: Release, **changes: Any) -> None:
    """Change the manifest in the store; the signature comes along, as whoever changes it would see to."""
    manifest = store.root / release.key / "manifest.json"
    signature = signature_of(store, release)
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changes))
    signature.rename(signature.with_name(f"manifest-{hashlib.sha256(manifest.read_bytes()).hexdigest()[:16]}.sig"))


def with_another_lora(store: FolderStore, release: Release) -> None:
    """Exchange LoRA and manifest together."""
    weights = lora(77)
    (store.root / release.key / "ada.safetensors").write_bytes(weights)
    entry = {"name": "ada.safetensors", "sha256": hashlib.sha256(weights).hexdigest(), "bytes": len(weights)}
    files = [file.model_dump() for file in found(store, release).manifest.files]
    rewrite(store, release, files=[entry if file["name"] == "ada.safetensors" else file for file in files])


def fetch(*options: str) -> int:
    return main(["fetch", "--subject", "ada", "--channel", "production", "--out", "got", *options])


@pytest.mark.parametrize("kind", ["public key", "certificate"])
def test_a_release_is_fetched_with_the_public_key_of_its_publisher(
    *, store: FolderStore, release: Release, who: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    key = public_file(who, tmp_path / "public.pem") if kind == "public key" else who.certificates

    assert fetch("--key", str(key)) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"signed   with the key of {key}"
    assert (tmp_path / "got" / "ada.safetensors").read_bytes() == lora(1)


def test_without_a_key_it_is_said_that_nobody_looked(
    store: FolderStore, release: Release, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert fetch() == 0
    assert "signed   yes, and not checked: --key PUBLIC checks it" in capsys.readouterr().out
    signature_of(store, release).unlink()
    assert fetch() == 0
    assert "signed   no: nobody knows whether it is what was published" in capsys.readouterr().out
    assert not (tmp_path / "got" / SIGNATURE).exists()


def exchange_the_signature(store: FolderStore, release: Release) -> None:
    signature_of(store, release).write_bytes(b"rubbish")


def sign_with_another_key(store: FolderStore, release: Release) -> None:
    with_another_lora(store, release)
    other = signer(store.root.parent / "other")
    content = (store.root / release.key / "manifest.json").read_bytes()
    signature_of(store, release).write_bytes(sign(content, other.key))


def remove_the_signature(store: FolderStore, release: Release) -> None:
    with_another_lora(store, release)
    signature_of(store, release).unlink()


CHANGED = r"The signature of \S+ of ada was not made with this key for this manifest"


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        (with_another_lora, CHANGED),
        (exchange_the_signature, CHANGED),
        (sign_with_another_key, CHANGED),
        (remove_the_signature, r"\S+ of ada is not signed, so nobody knows whose it is"),
    ],
)
def test_what_the_publisher_did_not_sign_is_refused_in_one_sentence_before_a_folder_is_made(
    *,
    store: FolderStore,
    release: Release,
    who: Signer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tamper: Callable[[FolderStore, Release], None],
    said: str,
) -> None:
    tamper(store, release)

    assert fetch("--key", str(public_file(who, tmp_path / "public.pem"))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(rf"flows: {said}", line)
    assert not (tmp_path / "got").exists()


def test_another_publishers_release_is_refused(
    store: FolderStore, release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = signer(tmp_path / "other")

    assert fetch("--key", str(public_file(other, tmp_path / "public.pem"))) == 2
    assert re.search(CHANGED, capsys.readouterr().err)


def test_a_release_signed_under_one_name_is_not_taken_for_another(
    store: FolderStore, release: Release, who: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = publish(tmp_path, store, Signing(who.certificates, who.key), seed=2)
    shutil.rmtree(store.root / release.key)
    shutil.copytree(store.root / other.key, store.root / release.key)

    assert fetch("--key", str(public_file(who, tmp_path / "public.pem"))) == 2
    assert f"is the manifest of '{other.name}' of 'ada'" in capsys.readouterr().err
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize(
    "name", ["../mine", "/etc/mine", "a/../../mine", "a//b", ".hidden", "a\\b", "a\nb", "a\x1b[2Jb"]
)
@pytest.mark.parametrize("field", ["files", "lora"])
def test_a_name_that_leads_elsewhere_or_cannot_be_printed_is_refused_before_a_folder_is_made(
    *,
    store: FolderStore,
    release: Release,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    field: str,
) -> None:
    entry = {"name": name, "sha256": "0" * 64, "bytes": 1}
    rewrite(store, release, **{field: [entry] if field == "files" else name})

    assert fetch() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{release.key}/manifest.json in the store is no manifest ({field}" in line
    assert line.isprintable()
    assert not (tmp_path / "got").exists() and not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["../../../eve/releases/1-00000000", "1-0000000g", "1-00000000\n", ""])
def test_a_channel_that_points_elsewhere_is_refused_before_a_folder_is_made(
    store: FolderStore, release: Release, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = store.root / channel_key("ada", "production")
    path.write_text(path.read_text().replace(json.dumps(release.name), json.dumps(name)))

    assert fetch() == 2
    assert f"{name!r} is no name of a release" in capsys.readouterr().err.replace("\\\\", "\\")
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("subject", ["../ada", "a/b", "a\nb", "a\x1b"])
def test_a_subject_that_leads_elsewhere_is_refused(
    store: FolderStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], subject: str
) -> None:
    assert main(["fetch", "--subject", subject, "--out", "got"]) == 2
    assert "--subject" in capsys.readouterr().err
    assert not (tmp_path / "got").exists()


@pytest.mark.parametrize("case", ["absent", "private", "garbage", "folder"])
def test_what_is_no_public_key_is_refused_with_the_remedy(
    *, store: FolderStore, release: Release, who: Signer, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    path = {"absent": tmp_path / "none.pem", "private": who.key, "folder": tmp_path}.get(case, tmp_path / "bad.pem")
    (tmp_path / "bad.pem").write_text("-----BEGIN PUBLIC KEY-----\nnone\n-----END PUBLIC KEY-----\n")

    assert fetch("--key", str(path)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be read" in line if case in {"absent", "folder"} else "openssl pkey -in KEY -pubout" in line
    assert not (tmp_path / "got").exists()


def test_publishing_the_same_again_signs_nothing_anew(
    store: FolderStore, release: Release, who: Signer, tmp_path: Path
) -> None:
    before = signature_of(store, release).read_bytes()

    again = publish(tmp_path, store, Signing(who.certificates, who.key))

    assert (again.name, again.is_new, again.notice) == (release.name, False, None)
    assert signature_of(store, release).read_bytes() == before


@pytest.mark.parametrize("lost", [True, False])
def test_a_signature_that_is_missing_or_damaged_is_made_anew_by_publishing_again(
    store: FolderStore, release: Release, who: Signer, tmp_path: Path, lost: bool
) -> None:
    path = signature_of(store, release)
    path.unlink() if lost else path.write_bytes(b"rotten")

    publish(tmp_path, store, Signing(who.certificates, who.key))

    found(store, release).require_signer(public_key_of(who.key))


def test_a_manifest_that_somebody_else_wrote_is_never_signed(
    store: FolderStore, release: Release, who: Signer, tmp_path: Path
) -> None:
    rewrite(store, release, strength=1.9)
    signature_of(store, release).unlink()

    with pytest.raises(InputError, match="is not what this workspace would publish, so it is not signed"):
        publish(tmp_path, store, Signing(who.certificates, who.key))
    assert found(store, release).signature is None


def test_a_release_without_a_key_to_sign_with_is_not_signed(store: FolderStore, tmp_path: Path) -> None:
    release = publish(tmp_path, store, None)

    assert found(store, release).signature is None


@needs_openssl
@pytest.mark.parametrize("kind", KEYS)
def test_openssl_and_we_check_each_others_signatures(tmp_path: Path, kind: str) -> None:
    key = KEYS[kind]()
    (tmp_path / "key.pem").write_bytes(key.private_bytes(PEM, TRADITIONAL, serialization.NoEncryption()))
    (tmp_path / "content").write_bytes(b'{"a": 1}')
    subprocess.run(["openssl", "pkey", "-in", "key.pem", "-pubout", "-out", "public.pem"], cwd=tmp_path, check=True)
    public = public_key(tmp_path / "public.pem")
    signature = sign(b'{"a": 1}', tmp_path / "key.pem")
    (tmp_path / "signature").write_bytes(signature)

    subprocess.run(["openssl", *OPENSSL[kind]], cwd=tmp_path, check=True, capture_output=True)

    assert is_signature(signature, b'{"a": 1}', public)
    assert not is_signature(signature, b'{"a": 2}', public)
    assert not is_signature(signature[:-1], b'{"a": 1}', public)


def test_a_key_that_cannot_sign_is_refused_without_showing_it(tmp_path: Path, who: Signer) -> None:
    locked = tmp_path / "locked.pem"
    key = ec.generate_private_key(ec.SECP256R1())
    locked.write_bytes(key.private_bytes(PEM, TRADITIONAL, serialization.BestAvailableEncryption(b"word")))
    curve = tmp_path / "curve.pem"
    other = ec.generate_private_key(ec.SECP192R1())
    curve.write_bytes(other.private_bytes(PEM, TRADITIONAL, serialization.NoEncryption()))

    for path in (locked, curve, who.certificates):
        with pytest.raises(InputError, match=rf"{path} has no private key in PEM without a passphrase") as refused:
            sign(b"{}", path)
        assert "BEGIN" not in str(refused.value)


@needs_openssl
def test_the_commands_of_the_guide_make_a_key_that_signs_and_a_public_key_that_checks(
    store: FolderStore, tmp_path: Path
) -> None:
    making, checking = (
        block for block in re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.S) if "openssl" in block
    )
    subprocess.run(["bash", "-ec", making], cwd=tmp_path, check=True, capture_output=True)
    release = publish(tmp_path, store, Signing(tmp_path / "certificates.pem", tmp_path / "key.pem"))
    promote(store, "ada", "production", release.name)

    ours, openssl = checking.splitlines()
    assert main(ours.removeprefix("python -m flows ").split()) == 0
    subprocess.run(["bash", "-ec", openssl], cwd=tmp_path, check=True)


def test_only_the_key_of_the_settings_signs(store: FolderStore, tmp_path: Path, who: Signer) -> None:
    other = signer(tmp_path / "other")

    with pytest.raises(InputError, match="pictures cannot be signed"):
        publish(tmp_path, store, replace(Signing(who.certificates, who.key), key=other.key))
    assert store.keys("") == []
