"""A signer made on the spot: a root, a certificate that it vouches for, its private key; and a time-stamp authority."""

import datetime
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEM = serialization.Encoding.PEM
USAGES = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
          "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
MAIL = ExtendedKeyUsageOID.EMAIL_PROTECTION  # one of those that C2PA lets sign
STAMP = ExtendedKeyUsageOID.TIME_STAMPING
SERVER = ExtendedKeyUsageOID.SERVER_AUTH


@dataclass(frozen=True)
class Signer:
    """Files of a signer."""

    certificates: Path
    key: Path
    root: str


def signer(folder: Path, *, purpose: x509.ObjectIdentifier = MAIL, days: float = 30) -> Signer:
    """Write a certificate chain that ends in some days (a negative number: it has ended), and its key."""
    folder.mkdir(parents=True)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = certificate("root", root_key, root_key, days=days)
    leaf = certificate("signer", key, root_key, days=days, purpose=purpose)
    (folder / "certificates.pem").write_bytes(leaf.public_bytes(PEM) + root.public_bytes(PEM))
    secret = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(secret)
    return Signer(folder / "certificates.pem", folder / "key.pem", root.public_bytes(PEM).decode())


def certificate(
    name: str, key: Any, issuer: Any, *, days: float, purpose: x509.ObjectIdentifier | None = None
) -> x509.Certificate:
    """A certificate of a key; without a purpose it vouches for others."""

    def named(text: str) -> x509.Name:
        return x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "of the test"),
                x509.NameAttribute(NameOID.COMMON_NAME, text),
            ]
        )

    now = datetime.datetime.now(datetime.UTC)
    allowed = "digital_signature" if purpose else "key_cert_sign"
    usage = x509.KeyUsage(**{each: each == allowed for each in USAGES})
    built = (
        x509.CertificateBuilder()
        .subject_name(named(name))
        .issuer_name(named("root"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=3))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=purpose is None, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    if purpose:
        built = built.add_extension(x509.ExtendedKeyUsage([purpose]), critical=purpose == STAMP)
    return built.sign(issuer, hashes.SHA256())


STAMPING = """[tsa]
default_tsa = stamping
[stamping]
serial = {folder}/serial
signer_cert = {folder}/certificates.pem
certs = {folder}/certificates.pem
signer_key = {folder}/key.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256, sha384, sha512
ess_cert_id_alg = sha256
"""


def stamped(query: bytes, authority: Signer) -> bytes:
    """Return the answer of a time-stamp authority, by openssl."""
    folder = authority.key.parent
    (folder / "query").write_bytes(query)
    (folder / "tsa.cnf").write_text(STAMPING.format(folder=folder))
    command = ["openssl", "ts", "-reply", "-config", "tsa.cnf", "-queryfile", "query"]
    return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout
