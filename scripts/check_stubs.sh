#!/bin/sh
# Fails if the committed stubs are not those of the protos. Changes nothing in the tree.
set -eu
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
trap 'exit 130' INT TERM

scripts/generate_stubs.sh "$fresh"
diff --recursive --brief --exclude='*.proto' --exclude=__init__.py --exclude=py.typed --exclude=__pycache__ \
    proto/recurra "$fresh/recurra" || {
    echo "The stubs are not those of the protos: run 'make proto' and commit what it writes." >&2
    exit 1
}
