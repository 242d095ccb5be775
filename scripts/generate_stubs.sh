#!/bin/sh
# Generates the Python stubs beside the protos. CI runs it and fails if git sees a difference.
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
PATH="$(dirname "$PYTHON"):$PATH" "$PYTHON" -m grpc_tools.protoc --proto_path=proto \
    --python_out=proto --grpc_python_out=proto \
    --mypy_out=quiet:proto --mypy_grpc_out=quiet:proto \
    proto/recurra/v1/*.proto
# A file without services needs no gRPC stub.
rm -f proto/recurra/v1/tensor_pb2_grpc.py* proto/recurra/v1/error_pb2_grpc.py*
