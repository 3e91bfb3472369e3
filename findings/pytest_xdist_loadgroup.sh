#!/bin/sh
# pytest-xdist 3.8.0 with pytest 9.2.0: `--dist loadgroup` spreads the tests of one xdist_group over all processes, without
# a word. xdist appends the group to the private `_nodeid` of each test, which this pytest does not read any more. With
# pytest 8.4.2 all tests of a group run in one process. What shares a port, a database or an order by group shares no more.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cat > test_group.py <<'EOF'
import os
import time

import pytest


@pytest.mark.parametrize("number", range(12))
@pytest.mark.xdist_group("one")
def test_of_a_group(number):
    time.sleep(0.1)
    with open("processes.txt", "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], file=file)
EOF
for pytest in 8.4.2 9.2.0; do
  python3 -m venv "venv$pytest"
  "venv$pytest/bin/pip" install -q "pytest==$pytest" pytest-xdist==3.8.0
  rm -f processes.txt
  "venv$pytest/bin/pytest" -q -p no:cacheprovider --numprocesses 2 --dist loadgroup test_group.py | tail -1
  count=$(sort -u processes.txt | wc -l)
  echo "pytest $pytest, pytest-xdist 3.8.0: 12 tests of one group ran in $count process(es)"
  eval "in_$(echo $pytest | cut -d. -f1)=$count"
done
[ "$in_8" = 1 ] && [ "$in_9" = 2 ]
