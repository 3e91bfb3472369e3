"""The demo's consent, as other subjects would give it."""

from pathlib import Path

import yaml

from tasks.settings import PROJECT


def agreed(folder: Path, subject: str, **changes: object) -> Path:
    """Write `<subject>.yaml` into a folder and return its path."""
    consent = yaml.safe_load((PROJECT / "data" / "consent.yaml").read_text(encoding="utf-8"))
    path = folder / f"{subject}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(consent | {"pseudonym": subject} | changes), encoding="utf-8")
    return path
