#!/bin/sh
# Fails if the protos break callers that were built with earlier ones. The earlier ones are those of, in this order:
# $BASELINE (any commit), the newest release tag v*, origin/main, the last commit.
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}

is_commit() { git rev-parse --quiet --verify "$1^{commit}" >/dev/null 2>&1; }

if [ -n "${BASELINE:-}" ]; then
    is_commit "$BASELINE" || { echo "BASELINE=$BASELINE is not a commit here; fetch it first." >&2; exit 1; }
    baseline=$BASELINE
else
    for baseline in "$(git describe --tags --abbrev=0 --match 'v*' 2>/dev/null)" origin/main HEAD none; do
        is_commit "$baseline" && break
    done
fi
git cat-file -e "$baseline:buf.yaml" 2>/dev/null || { echo "No earlier protos to compare with."; exit 0; }

# Unpacked, because buf's own reading of git needs a full clone.
earlier=$(mktemp -d)
trap 'rm -rf "$earlier"' EXIT
trap 'exit 130' INT TERM
git archive "$baseline" buf.yaml proto | tar -x -C "$earlier"
"$VENV/bin/buf" breaking --against "$earlier" || {
    echo "The protos break callers built with those of $baseline: keep what is there and add beside it." >&2
    exit 1
}
