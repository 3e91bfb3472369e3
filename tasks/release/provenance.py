"""Sign sample pictures with C2PA, as made by a model; the only importer of c2pa.

Two signatures of one picture differ, so publishers of a release agree on one: the first that is stored below
`releases/signed/` is everybody's, and is the copy from which a damaged one is mended.
"""

import io
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.settings import Signing
from tasks.store.protocol import Store, StoreError
from tasks.store.releases import Manifest, PublishedFile, described, release_key, releases_key
from zimage.core.errors import InputError
from zimage.core.folder import write_whole

# Nothing is fetched while signing (a time stamp is, where its authority is configured), and no small copy is added.
QUIET = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_after_sign": True, "ocsp_fetch": False, "remote_manifest_fetch": False},
}
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
RELEASE = "org.zimage.release"  # custom names are written like domains (C2PA 2.2, 6.2)
PNG_START, PNG_CHUNK = 8, 12  # bytes of the signature; of a chunk without its data (PNG, 5.2 and 5.3)
C2PA_CHUNK = b"caBX"
MAX_PICTURE_BYTES = 256 * 2**20


def check_signing(signing: Signing) -> None:
    """Pass if pictures can be signed: a small one is, without a time stamp.

    Raises:
        InputError: the package, a file or a setting is missing, or certificate and key do not do for it.
    """
    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "png")
    _signed(content.getvalue(), "", signing, timestamps="")


def signer_of(signing: Signing | None) -> list[PublishedFile]:
    """Return the certificates as if they were a file of the release: other ones make it another release."""
    return [described("signed by", _file(signing.certificates, "certificates"))] if signing else []


def signed_pictures(
    store: Store, subject: str, release: str, pictures: Mapping[str, Path], finished: Manifest | None, *,
    signing: Signing, folder: Path,
) -> dict[str, Path]:  # fmt: skip
    """Return the signed copies of pictures, the same for everybody who publishes this release, by their key.

    Args:
        store: Where copies are agreed on.
        subject: The subject.
        release: The release's name; it is signed with each picture.
        pictures: The unsigned pictures, by their name in the release.
        finished: The release's manifest, if it is finished: then it says which copies are the right ones.
        signing: What to sign with.
        folder: Gets the copies.

    Raises:
        StoreError: a finished release's copies are all damaged, or the time-stamp authority does not answer.
    """
    there = {file.name: file for file in finished.files} if finished else {}
    found = {}
    for name, picture in pictures.items():
        target, kept = folder / name, kept_key(subject, release, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        places = [kept, f"{release_key(subject, release)}/{name}"]
        if not any(_fetched(store, key, target, picture, there.get(name)) for key in places):
            if finished:
                raise StoreError(
                    f"{places[1]} is damaged in the store, and so is its copy; a signature cannot be made twice. "
                    "Publish with another certificate, which makes another release."
                )
            content = _signed(picture.read_bytes(), release, signing, timestamps=signing.timestamps)
            write_whole(target, content)
            if not store.put_if_absent(kept, target) and not _fetched(store, kept, target, picture, None):
                write_whole(target, content)
                store.overwrite(kept, target)
        found[name] = target
    return found


def kept_key(subject: str, release: str, name: str) -> str:
    """Return the key of the agreed signed copy; below the releases, where a publisher may write."""
    return f"{releases_key(subject)}/signed/{release}/{Path(name).name}"


def is_signature_of(signed: bytes, picture: bytes) -> bool:
    """Return whether `signed` is the PNG `picture` with a valid signature and nothing else."""
    try:
        return _without_signature(signed) == picture and _state(signed) in {"Valid", "Trusted"}
    except (ValueError, struct.error):
        return False


def _fetched(store: Store, key: str, target: Path, picture: Path, expected: PublishedFile | None) -> bool:
    """Download a copy to `target`; return whether one exists and is the right one."""
    try:
        store.get(key, target, max_bytes=expected.bytes if expected else MAX_PICTURE_BYTES)
    except InputError:
        return False
    if expected:
        return described(expected.name, target) == expected
    return is_signature_of(target.read_bytes(), picture.read_bytes())


def _signed(picture: bytes, release: str, signing: Signing, *, timestamps: str) -> bytes:
    """Return a PNG with a signature that says that a model made it, and of which release."""
    certificates = _file(signing.certificates, "certificates").read_bytes()
    key = _file(signing.key, "key").read_bytes()
    signed = io.BytesIO()
    with _told(signing) as c2pa:
        info = c2pa.C2paSignerInfo(signing.algorithm, certificates, key, timestamps or None)
        with c2pa.Signer.from_info(info) as signer, c2pa.Context.from_dict(QUIET) as context:
            c2pa.Builder(json.dumps(_claim(release)), context).sign(signer, "image/png", io.BytesIO(picture), signed)
    return signed.getvalue()


def _claim(release: str) -> dict[str, Any]:
    """Return what is signed: a model made it, and by which software; nothing of the person, not even the pseudonym."""
    software = {"name": "zimage"}
    made = {
        "action": "c2pa.created",
        "digitalSourceType": MADE_BY_A_MODEL,
        "softwareAgent": software,
        "parameters": {RELEASE: release},
    }
    return {
        "claim_generator_info": [software],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [made]}}],
    }


def _state(signed: bytes) -> str:
    """Return what c2pa finds about a signature: Invalid, Valid, or Trusted where the signer's root is known here."""
    import c2pa

    try:
        with (
            c2pa.Context.from_dict(QUIET) as context,
            c2pa.Reader("image/png", io.BytesIO(signed), context=context) as reader,
        ):
            return str(reader.get_validation_state())
    except c2pa.C2paError:
        return "Invalid"


def _without_signature(png: bytes) -> bytes:
    """Return a PNG without its C2PA chunk, byte for byte what was signed."""
    parts, start = [png[:PNG_START]], PNG_START
    while start < len(png):
        (length,) = struct.unpack(">I", png[start : start + 4])
        end = start + PNG_CHUNK + length
        if png[start + 4 : start + 8] != C2PA_CHUNK:
            parts.append(png[start:end])
        start = end
    return b"".join(parts)


def _file(path: Path | None, what: str) -> Path:
    setting = f"ZIMAGE_C2PA_{what.upper()}"
    if path is None:
        raise InputError(f"Not published: pictures are to be signed, and {setting} is not set; set it, or unset both.")
    if not path.is_file():
        raise InputError(f"Not published: {setting} names {path}, and there is no such file.")
    return path


@contextmanager
def _told(signing: Signing) -> Iterator[Any]:
    """Yield the package c2pa, its errors translated into ours, with the remedy."""
    try:
        import c2pa
    except ImportError:
        raise InputError(
            "Not published: pictures are to be signed (ZIMAGE_C2PA_KEY), and the package is missing; "
            "`pip install 'zimage[sign]'`, or unset it."
        ) from None
    try:
        yield c2pa
    except c2pa.C2paError as error:
        if "http resolver" in str(error) or "timestamp" in str(error).lower():
            raise StoreError(
                f"The time-stamp authority {signing.timestamps} did not stamp: {error}; run again, or unset "
                "ZIMAGE_C2PA_TIMESTAMPS."
            ) from None
        raise InputError(
            f"Not published: pictures cannot be signed with {signing.certificates} and its key by {signing.algorithm} "
            f"({error}); infra/guide.md says what kind of certificate and key it takes."
        ) from None
