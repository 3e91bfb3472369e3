#!/bin/sh
# DVC and ruamel.yaml: DVC parses params.yaml anew for every stage that reads it, also when nothing has changed, and a plain
# install parses in pure Python: since 0.19 ruamel.yaml asks for its binding of libyaml only as an extra, and does without it silently.
# With ruamel.yaml.clib installed beside it the same parsing takes less than half of the CPU time.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'dvc==3.67.1' 'ruamel.yaml==0.19.1'
mkdir project
cat > count.py <<'EOF'
import sys, time
from pathlib import Path

from dvc.cli import main
from dvc.utils.serialize import _yaml

parse, calls = _yaml.parse_yaml, []

def counted(text, path, *others, **more):
    began = time.process_time()
    found = parse(text, path, *others, **more)
    calls.append((Path(path).name, time.process_time() - began))
    return found

_yaml.parse_yaml = counted
code = main(["repro", "--quiet"])
own = [seconds for name, seconds in calls if name == "params.yaml"]
Path(sys.argv[1]).write_text(f"{len(own)} {sum(own):.3f}")
sys.exit(code)
EOF
cat > make.py <<'EOF'
stages = 20
with open("params.yaml", "w") as out:
    for number in range(stages):
        out.write(f"section{number}:\n" + "".join(f"  key{key}: {key / 7:.4f}  # a value\n" for key in range(20)))
with open("dvc.yaml", "w") as out:
    out.write("stages:\n")
    for number in range(stages):
        out.write(f"  stage{number}:\n    cmd: echo {number} > out{number}\n    params: [section{number}]\n    outs: [out{number}]\n")
EOF
cd project
export DVC_NO_ANALYTICS=1 PATH="$folder/venv/bin:$PATH"
git init -q && dvc init -q && python ../make.py && dvc repro -q
python -c 'import importlib.metadata as m; print("dvc", m.version("dvc"), "ruamel.yaml", m.version("ruamel.yaml"))'
if python -c 'import _ruamel_yaml' 2>/dev/null || python -c 'import _ruamel_yaml_clibz' 2>/dev/null; then
  echo "ruamel.yaml brings a binding of libyaml"; exit 1
fi
python ../count.py ../pure
pip install -q 'ruamel.yaml.clib==0.2.15'
python ../count.py ../libyaml
read -r calls pure < ../pure || true
read -r again fast < ../libyaml || true
echo "params.yaml of 400 values, 20 unchanged stages: parsed $calls times in $pure s of CPU time, with the binding $again times in $fast s"
[ "$calls" -ge 20 ] && [ "$calls" = "$again" ]
python -c "import sys; sys.exit(not $pure > 2 * $fast)"
