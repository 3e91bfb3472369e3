#!/bin/sh
# Writes the environment of infra/compose.yaml to stdout: secrets made on the spot, and images by the digest that their
# registry gives for a tag today. Run again, it makes other secrets: keep the file with the volumes that were made with it.
#
#   infra/compose-env.sh > infra/compose.env
set -eu
umask 077
secret() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

digest() {
    found=$(docker buildx imagetools inspect "$1" --format '{{.Manifest.Digest}}') || {
        echo "compose-env.sh: The digest of $1 cannot be asked for; install docker with buildx, or write it by hand." >&2
        exit 1
    }
    echo "$1@$found"
}

python=$(digest python:3.11.14-slim-bookworm)
postgres=$(digest postgres:16.10-bookworm)
store=$(digest chrislusf/seaweedfs:4.43)  # conditional writes are atomic from the releases of April 2026 on
echo "PREFECT_AUTH=admin:$(secret)"
echo "DATABASE_PASSWORD=$(secret)"
for role in STORE CPU GPU PUBLISHER ERASER; do
    echo "${role}_KEY=$(secret)"
    echo "${role}_SECRET=$(secret)"
done
echo "PYTHON_IMAGE=$python"
echo "POSTGRES_IMAGE=$postgres"
echo "STORE_IMAGE=$store"
echo "PHOTOS=./photos"
echo "MODELS=./models"
echo "ZIMAGE_NOTIFY="
