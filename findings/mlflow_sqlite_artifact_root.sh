#!/bin/sh
# MLflow: opening a new SQLite store writes the working directory of the process that happens to be first into the database,
# as the place of the Default experiment's artifacts, and keeps it there: with an explicit tracking_uri elsewhere, without a
# run or an artifact, and whatever process in whatever folder opens the store later.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install -q 'mlflow-skinny==3.17.2' 'sqlalchemy>=2,<3' 'alembic>=1.13,<2'
mkdir store first second
cat > open.py <<'EOF'
import os, sqlite3, sys
from mlflow import MlflowClient

MlflowClient(tracking_uri=f"sqlite:///{sys.argv[1]}/mlflow.db").get_experiment_by_name("another")
with sqlite3.connect(f"{sys.argv[1]}/mlflow.db") as database:
    rows = database.execute("SELECT name, artifact_location FROM experiments").fetchall()
print(*((name, place.replace(os.path.dirname(sys.argv[1]), "FOLDER")) for name, place in rows))
EOF
export MLFLOW_DISABLE_TELEMETRY=true
venv/bin/python -c 'import importlib.metadata as m; print("mlflow-skinny", m.version("mlflow-skinny"))'
one=$(cd first && ../venv/bin/python ../open.py "$folder/store" 2>/dev/null)
two=$(cd second && ../venv/bin/python ../open.py "$folder/store" 2>/dev/null)
echo "opened from FOLDER/first: $one"
echo "opened from FOLDER/second: $two"
case "$one" in *FOLDER/first*) ;; *) exit 1 ;; esac
[ "$one" = "$two" ]
