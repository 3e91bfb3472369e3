import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"
FINE = {"name": "zipp", "version": "3.23.0", "vulns": []}
OPEN = {"name": "six", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "description": "…"}]}
UNKNOWN = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}
UNREACHED = "Traceback (most recent call last):\nrequests.exceptions.ProxyError: Unable to connect to proxy\n"


def audited(tmp_path: Path, report: str, log: str = "") -> tuple[str, int]:
    """What the script says of a report as pip-audit 2.10.1 writes it."""
    (tmp_path / "log").write_text(log)
    command = [sys.executable, str(AUDIT), str(tmp_path / "log")]
    done = subprocess.run(command, input=report, capture_output=True, text=True, check=False)
    return done.stdout, done.returncode


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        ([FINE], 0, "1 of 1 packages were looked up.\n"),
        ([FINE, OPEN], 1, "2 of 2 packages were looked up.\nsix 1.0: PYSEC-1, mended in 1.1\n"),
        ([FINE, UNKNOWN], 2, "NOT AUDITED, as the service does not know them: torch (1 in all).\n"),
        ([OPEN, UNKNOWN], 1, "NOT AUDITED, as the service does not know them: torch (1 in all).\n"),
        (
            [UNKNOWN],
            2,
            "NOTHING WAS AUDITED: what answered for PyPI knows none of 1 packages.\n",
        ),
    ],
)
def test_only_what_was_looked_up_counts_as_audited(
    packages: list[dict[str, Any]], code: int, says: str, tmp_path: Path
) -> None:
    told, ended = audited(tmp_path, json.dumps({"dependencies": packages, "fixes": []}))

    assert ended == code
    assert told.endswith(says)


def test_a_service_that_is_not_reached_is_one_sentence_and_no_success(tmp_path: Path) -> None:
    told, ended = audited(tmp_path, "", UNREACHED)

    assert ended == 2
    assert told == (
        "NOTHING WAS AUDITED: pip-audit could not ask PyPI: "
        "requests.exceptions.ProxyError: Unable to connect to proxy\n"
    )
