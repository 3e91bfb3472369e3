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
    """

    project: Path
    workspaces: Path
    store: str

    def workspace(self, subject: str) -> Path:
        """Return the workspace folder of `subject`; the demo's is the project itself."""
        return self.project if subject == DEMO else self.workspaces / subject


def from_environment() -> Settings:
    """Return the settings of this process; what is unset lies in the project's folder."""
    return Settings(
        project=PROJECT,
        workspaces=Path(os.environ.get("ZIMAGE_WORKSPACES", PROJECT / "workspaces")).absolute(),
        store=os.environ.get("ZIMAGE_STORE", str(PROJECT / "store")),
    )
