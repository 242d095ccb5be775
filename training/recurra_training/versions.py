"""Which releases took part; a run and a model file say so."""

import importlib.metadata
from typing import Final

_PACKAGES: Final = ("recurra", "torch", "pytorch-lightning", "onnx", "onnxscript", "onnxruntime", "numpy")


def versions() -> dict[str, str]:
    """The installed release of every package that training and export rest on."""
    return {package: importlib.metadata.version(package) for package in _PACKAGES}
