"""Settings of a machine from environment variables: workspaces, store, signing, limits. None of them changes a result.

Relative paths become absolute here, where they are read: DVC, workers and other children run in other folders.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil

from zimage.core.errors import InputError

PROJECT = Path(__file__).parent.parent
DEMO = "demo"
BYTES_EACH = 8 * 2**30  # memory for one `personalize`; as much as a job of infra/kubernetes/cpu-pool.json gets
FILE = "file://"
REPLACED_DAYS = 30.0
PATHS = ("ZIMAGE_STORE", "ZIMAGE_WORKSPACES", "ZIMAGE_C2PA_CERTIFICATES", "ZIMAGE_C2PA_KEY")


@dataclass(frozen=True)
class Signing:
    """Key and certificates for signing; the files are read only when something is signed.

    Args:
        certificates: The signer's certificate, then those that vouch for it, in PEM (ZIMAGE_C2PA_CERTIFICATES).
        key: Its private key, in PEM: PKCS #8 without a passphrase (ZIMAGE_C2PA_KEY).
        algorithm: As C2PA names it, such as es256 or ps256 (ZIMAGE_C2PA_ALGORITHM).
        timestamps: Address of a time-stamp authority, "" for none (ZIMAGE_C2PA_TIMESTAMPS).
    """

    certificates: Path | None
    key: Path | None
    algorithm: str = "es256"
    timestamps: str = ""


@dataclass(frozen=True)
class Settings:
    """Paths and addresses of one machine.

    Args:
        project: The clone: params.yaml, dvc.yaml and code.yaml that all workspaces start from.
        workspaces: Folder with one workspace per subject (ZIMAGE_WORKSPACES).
        store: Absolute folder or `s3://bucket/prefix` for what outlives a workspace (ZIMAGE_STORE).
        endpoint: Address of a server that speaks S3, "" for Amazon's (AWS_ENDPOINT_URL_S3, as boto3 reads it).
        pages: Where a browser reaches pages of the store (ZIMAGE_PAGES): the page server of `make serve` for a folder,
            an endpoint for S3; "" where pages of a folder are opened as files, and S3 has one endpoint for all.
        signing: What pictures are signed with; None where that is not configured.
        hub: Address of the Hugging Face Hub, "" for huggingface.co (HF_ENDPOINT, as huggingface_hub reads it).
        replaced_days: How long photos and results stay that were replaced (ZIMAGE_REPLACED_DAYS).
    """

    project: Path
    workspaces: Path
    store: str
    endpoint: str = ""
    pages: str = ""
    signing: Signing | None = None
    hub: str = ""
    replaced_days: float = REPLACED_DAYS

    def workspace(self, subject: str) -> Path:
        """Return the workspace folder of `subject`; the demo's is the project itself."""
        return self.project if subject == DEMO else self.workspaces / subject

    def subject(self, workspace: Path) -> str:
        """Return the subject of a workspace."""
        return DEMO if workspace == self.project else workspace.name

    @property
    def logs(self) -> Path:
        """Return the folder for the output of a stack's parts."""
        return self.workspaces / ".logs"

    def remote(self, subject: str) -> str:
        """Return the address of DVC's remote for this subject, below the subject's prefix."""
        return f"{self.store.rstrip('/')}/subjects/{subject}/dvc"


def inherited() -> dict[str, str]:
    """Return the environment of this process for a child, which may run in another folder: its paths are absolute.

    Raises:
        InputError: see `from_environment`.
    """
    return {**os.environ, **{name: _absolute(os.environ[name]) for name in PATHS if os.environ.get(name)}}


def from_environment() -> Settings:
    """Return the settings of this process; what is unset lies in the project's folder.

    Raises:
        InputError: a `file://` address names another machine or no absolute path, or ZIMAGE_REPLACED_DAYS is no number.
    """
    return Settings(
        project=PROJECT,
        workspaces=Path(_absolute(os.environ.get("ZIMAGE_WORKSPACES") or str(PROJECT / "workspaces"))),
        store=_absolute(os.environ.get("ZIMAGE_STORE") or str(PROJECT / "store")),
        endpoint=os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", "")),
        pages=os.environ.get("ZIMAGE_PAGES", ""),
        signing=_signing(),
        hub=os.environ.get("HF_ENDPOINT", "").rstrip("/"),
        replaced_days=_replaced_days(),
    )


def _absolute(address: str) -> str:
    """Return a path or a `file://` address as an absolute path; an address of another kind stays as it is.

    Raises:
        InputError: see `from_environment`.
    """
    if address.lower().startswith(FILE):
        parts = urlsplit(address)
        if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
            raise InputError(
                f"{address} is no address of a folder on this machine; write {FILE}/ABSOLUTE/PATH with three slashes, "
                "or a plain path."
            )
        return unquote(parts.path)
    return address if "://" in address else str(Path(address).expanduser().absolute())


def site_cache() -> Path:
    """Return where DVC remembers files of workspaces that do not say where (DVC_SITE_CACHE_DIR, as DVC reads it)."""
    return Path(os.environ.get("DVC_SITE_CACHE_DIR", "/var/tmp/dvc"))


def silence_limits(lost_after_s: float, pending_s: float) -> tuple[float, float]:
    """Return how many seconds a run may be silent, and how many it may take to begin, where others are not set.

    Args:
        lost_after_s: Unless ZIMAGE_LOST_AFTER_S is set, to more than the time between two heartbeats.
        pending_s: Unless ZIMAGE_PENDING_S is set.
    """
    return (
        float(os.environ.get("ZIMAGE_LOST_AFTER_S", lost_after_s)),
        float(os.environ.get("ZIMAGE_PENDING_S", pending_s)),
    )


def personalize_at_once() -> int:
    """Return how many `personalize` may be under way at once: ZIMAGE_AT_ONCE, or what this machine's size allows.

    Raises:
        InputError: ZIMAGE_AT_ONCE is no number of 1 or more.
    """
    given = os.environ.get("ZIMAGE_AT_ONCE", "")
    if not given:
        return max(1, min(psutil.cpu_count() or 1, int(psutil.virtual_memory().total // BYTES_EACH)))
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"ZIMAGE_AT_ONCE is {given!r}; set it to a number of runs, 1 or more.")
    return int(given)


def hub_token() -> str:
    """Return the token for the hub, "" where the environment has none; not in Settings, which may be logged."""
    return os.environ.get("HF_TOKEN", "")


def _replaced_days() -> float:
    given = os.environ.get("ZIMAGE_REPLACED_DAYS", "")
    if not given:
        return REPLACED_DAYS
    if not given.isdecimal():
        raise InputError(f"ZIMAGE_REPLACED_DAYS is {given!r}; set it to a number of days, 0 or more.")
    return float(given)


def _signing() -> Signing | None:
    certificates, key = os.environ.get("ZIMAGE_C2PA_CERTIFICATES"), os.environ.get("ZIMAGE_C2PA_KEY")
    if not certificates and not key:
        return None
    return Signing(
        certificates=Path(_absolute(certificates)) if certificates else None,
        key=Path(_absolute(key)) if key else None,
        algorithm=os.environ.get("ZIMAGE_C2PA_ALGORITHM", "es256"),
        timestamps=os.environ.get("ZIMAGE_C2PA_TIMESTAMPS", ""),
    )


def built_from() -> str | None:
    """Return the commit that an image of this project was made of (ZIMAGE_COMMIT); None where nothing tells it."""
    return os.environ.get("ZIMAGE_COMMIT") or None
