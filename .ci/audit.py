"""Say what pip-audit's report means; the report comes in, as JSON, and its log is the one argument.

By itself pip-audit ends well where its service knows no package at all, and with a traceback where there is none. The
exit code is 0 if every package was looked up and none has a known vulnerability, 1 if one has, 2 otherwise.
"""

import json
import sys
from pathlib import Path
from typing import Any

SHOWN = 5


def said(report: str, log: str) -> tuple[str, int]:
    """Return what to tell, and the exit code."""
    try:
        packages: list[dict[str, Any]] = json.loads(report)["dependencies"]
    except ValueError:
        why = (log.strip().splitlines() or ["it said nothing"])[-1]
        return f"NOTHING WAS AUDITED: pip-audit could not ask PyPI: {why[:300]}", 2
    unknown = [each["name"] for each in packages if "skip_reason" in each]
    known = [
        f"{each['name']} {each['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'no version'}"
        for each in packages
        for found in each.get("vulns", [])
    ]
    if len(unknown) == len(packages):
        return f"NOTHING WAS AUDITED: what answered for PyPI knows none of {len(packages)} packages.", 2
    told = [f"{len(packages) - len(unknown)} of {len(packages)} packages were looked up.", *known]
    if unknown:
        told.append(
            f"NOT AUDITED, as the service does not know them: {', '.join(unknown[:SHOWN])} ({len(unknown)} in all)."
        )
    return "\n".join(told), 1 if known else 2 if unknown else 0


if __name__ == "__main__":
    text, code = said(sys.stdin.read(), Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.stdout.write(f"{text}\n")
    sys.exit(code)
