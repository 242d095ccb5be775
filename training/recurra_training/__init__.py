"""Recurra's training side: recurrent networks in PyTorch, exported to ONNX and proven before they are published."""

import os

# ONNX Runtime would report models to its makers. Read when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
