#!/bin/sh
# DVC: a truncated record of the run cache ends `dvc repro` of every machine that fetches it, with "'outs'" as all it says.
# An empty record is skipped with a warning, and one cut off in mid-YAML too; one that happens to be valid YAML is not.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'dvc==3.67.1'
PATH="$folder/venv/bin:$PATH" DVC_NO_ANALYTICS=1
export PATH DVC_NO_ANALYTICS
dvc --version
mkdir project && cd project
dvc init -q --no-scm
dvc remote add -q -d store "$folder/remote"
dvc config core.site_cache_dir "$folder/site"
dvc stage add -q -n copy -d in -o out 'cp in out'
echo photo > in
dvc repro -q && dvc push -q --run-cache
rm -rf .dvc/cache dvc.lock out  # another machine
record=$(find "$folder/remote/runs" -type f)
head -c 12 "$record" > "$folder/short" && chmod u+w "$record" && cp "$folder/short" "$record"
echo "the record is now: $(cat "$record")"
if said=$(dvc repro --pull copy 2>&1); then
    echo "changed: the stage was run or restored: $said"
    exit 1
fi
echo "$said"
echo "$said" | grep -q "failed to reproduce 'copy': 'outs'" || { echo "changed: it fails in other words"; exit 1; }
: > "$record"
rm -rf .dvc/cache
dvc repro --pull copy 2>&1 | grep -i 'corrupted cache file'
