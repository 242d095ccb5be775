"""The Recurra server: recurrent networks over gRPC, with their memory kept on the server."""

import os

# The gRPC core prints lines of its own, about failures that are also raised. It reads this once, when imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# ONNX Runtime would report models to its makers. Read when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
# What little linear algebra is done outside the models is not worth a thread. Read when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
