"""Where things are: the project, the workspaces, the store. From the environment; nothing here changes a result."""

import os
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
DEMO = "demo"


@dataclass(frozen=True)
class Settings:
    """Places that differ from machine to machine.

    Args:
        project: The clone: params.yaml, dvc.yaml and code.yaml that all workspaces start from.
        workspaces: Folder with one workspace per subject (ZIMAGE_WORKSPACES).
        store: Folder or `s3://bucket/prefix` for what outlives a workspace (ZIMAGE_STORE).
        endpoint: Address of a server that speaks S3, "" for Amazon's (AWS_ENDPOINT_URL_S3, as boto3 reads it).
    """

    project: Path
    workspaces: Path
    store: str
    endpoint: str = ""

    def workspace(self, subject: str) -> Path:
        """Return the workspace folder of `subject`; the demo's is the project itself."""
        return self.project if subject == DEMO else self.workspaces / subject

    @property
    def logs(self) -> Path:
        """Return where a stack writes what its parts say."""
        return self.workspaces / ".logs"

    def remote(self, subject: str) -> str:
        """Return where DVC keeps what this subject's workspaces share; it is part of the subject's prefix."""
        return f"{self.store.rstrip('/')}/subjects/{subject}/dvc"


def inherited() -> dict[str, str]:
    """Return the environment of this process, for a child that shall have a little more of it."""
    return dict(os.environ)


def from_environment() -> Settings:
    """Return the settings of this process; what is unset lies in the project's folder."""
    return Settings(
        project=PROJECT,
        workspaces=Path(os.environ.get("ZIMAGE_WORKSPACES", PROJECT / "workspaces")).absolute(),
        store=os.environ.get("ZIMAGE_STORE", str(PROJECT / "store")),
        endpoint=os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", "")),
    )
