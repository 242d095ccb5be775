#!/bin/sh
# Generates the Python stubs of the protos, beside them or into the folder given.
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
out=${1:-proto}

# protoc looks for the mypy plug-ins on the PATH.
PATH="$VENV/bin:$PATH" "$VENV/bin/python" -m grpc_tools.protoc --proto_path=proto \
    --python_out="$out" --grpc_python_out="$out" \
    --mypy_out=quiet:"$out" --mypy_grpc_out=quiet:"$out" \
    proto/recurra/*/*.proto

# A file without services needs no gRPC stub.
for proto in proto/recurra/*/*.proto; do
    stub=${proto#proto/}
    grep -q '^service ' "$proto" || rm -f "$out/${stub%.proto}"_pb2_grpc.py*
done
