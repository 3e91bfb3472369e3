"""Sign the manifest of a release with a detached signature, and verify it.

A manifest is signed as it is stored, byte for byte, by the key that signs the pictures; no other form of it exists that
would have to be made canonical. The two uses of the key cannot be confused: a picture's signature covers a CBOR array
(RFC 9052, 4.4), which never begins with the `{` of a manifest. Which hash goes with a key follows from the key alone,
so nobody who changes a signature can choose a weaker one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zimage.core.errors import InputError

MAX_KEY_FILE_BYTES = 64 * 1024
CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
MAKE_PUBLIC = "`openssl pkey -in KEY -pubout -out PUBLIC` makes it"


def sign(content: bytes, key: Path) -> bytes:
    """Return a signature of `content`, in the form in which openssl makes and checks one.

    Args:
        content: What is signed.
        key: A PEM file with a private key (EC, RSA or Ed25519) without a passphrase.

    Raises:
        InputError: the file has no such key, or the package is missing.
    """
    private = _private_key(key)
    signature: bytes = private.sign(content, *_scheme(private))
    return signature


def is_signature(signature: bytes, content: bytes, public: Any) -> bool:
    """Return whether the owner of a public key made `signature` of exactly `content`."""
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(signature, content, *_scheme(public))
    except InvalidSignature:
        return False
    return True


def public_key(path: Path) -> Any:
    """Return the public key in a PEM file; of a certificate, that of its owner.

    A certificate's dates and issuers are not looked at: whoever names the file trusts the key in it.

    Raises:
        InputError: the file is missing, holds no public key of a kind that signs releases, or the package is missing.
    """
    with _explained(path, "public", MAKE_PUBLIC):
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        content = _read(path)
        found = (
            x509.load_pem_x509_certificate(content).public_key()
            if CERTIFICATE in content
            else load_pem_public_key(content)
        )
        _scheme(found)
        return found


def public_key_of(private: Path) -> Any:
    """Return the public key that belongs to a private key.

    Raises:
        InputError: see `sign`.
    """
    return _private_key(private).public_key()


def _private_key(path: Path) -> Any:
    with _explained(path, "private", "infra/guide.md says how to make one"):
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        found = load_pem_private_key(_read(path), None)
        _scheme(found)
        return found


def _scheme(key: Any) -> tuple[Any, ...]:
    """Return what `sign` and `verify` of a key take beside signature and content.

    Raises:
        ValueError: it is of another kind.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

    match key:
        case ec.EllipticCurvePrivateKey() | ec.EllipticCurvePublicKey():
            for bits, algorithm in ((256, hashes.SHA256()), (384, hashes.SHA384()), (521, hashes.SHA512())):
                if key.curve.key_size == bits:
                    return (ec.ECDSA(algorithm),)
        case rsa.RSAPrivateKey() | rsa.RSAPublicKey():
            pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            return (pss, hashes.SHA256())
        case ed25519.Ed25519PrivateKey() | ed25519.Ed25519PublicKey():
            return ()
    raise ValueError("keys of this kind sign no release")


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_KEY_FILE_BYTES)


@contextmanager
def _explained(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Let what a key file can be wrong in come as a sentence; the contents of the file are no part of it."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
    except ImportError:
        raise InputError(
            "Signatures of releases need the package cryptography, which is missing; `pip install 'zimage[sign]'`."
        ) from None
    try:
        yield
    except OSError as error:
        raise InputError(f"The {kind} key {path} cannot be read ({error.strerror}); name a file that can.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # TypeError: it has a passphrase
        raise InputError(
            f"{path} has no {kind} key in PEM without a passphrase, of the kind EC (P-256, P-384, P-521), RSA or "
            f"Ed25519; {remedy}."
        ) from None
