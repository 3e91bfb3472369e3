"""What a release promises to readers, held against a store that fails and writers that are killed."""

import json
import os
import subprocess
import sys

from tasks.settings import PROJECT

OPERATIONS, SEED = 40, 7  # 1,000 and more: python -m tests.tasks.campaign; figures in infra/benchmarks.md


def test_whatever_fails_and_whoever_is_killed_no_release_is_half_visible_lost_or_left_after_forgetting() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "tests.tasks.campaign", str(OPERATIONS), str(SEED)]

    done = subprocess.run(command, cwd=PROJECT, env={**os.environ, **keys}, capture_output=True, text=True, check=True)

    told = json.loads(done.stdout)
    assert told["broken promises"] == []
    assert told["outcomes"]["publish done"] > 0 and told["outcomes"]["forget done"] > 0
    assert sum(count for what, count in told["faults"].items() if what != "requests") > 10
