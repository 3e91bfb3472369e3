"""Turn reports of `pip install --dry-run --report FILE` into requirements with hashes, on stdout.

What it leaves out: the project itself, and torch with what only torch's CUDA build asks for, which come from elsewhere.
"""

import json
import sys
from pathlib import Path
from typing import Any

ELSEWHERE = ("torch", "zimage", "triton", "nvidia-", "cuda-")
HEAD = """\
# Every package of infra/Dockerfile with the hash of its file on PyPI, for CPython 3.11 on Linux x86-64:
# `make lock` makes it from constraints.txt. torch is not in it: its builds for CPU and CUDA have different files.
"""


def locked(installed: list[dict[str, Any]]) -> str:
    """Return one line for each package that a report has under `install`, by name.

    Raises:
        ValueError: a package is not from an index, so that its hash says nothing about what others would get.
    """
    lines = []
    for each in installed:
        name, version = each["metadata"]["name"].lower().replace("_", "-"), each["metadata"]["version"]
        if name.startswith(ELSEWHERE):
            continue
        download = each["download_info"]
        if not download["url"].startswith("https://"):
            raise ValueError(f"{name} is not from an index but from {download['url']}; unset PIP_FIND_LINKS.")
        lines.append(f"{name}=={version} --hash=sha256:{download['archive_info']['hashes']['sha256']}\n")
    return HEAD + "".join(sorted(lines))


if __name__ == "__main__":
    reports = [json.loads(Path(each).read_text(encoding="utf-8")) for each in sys.argv[1:]]
    sys.stdout.write(locked([package for report in reports for package in report["install"]]))
