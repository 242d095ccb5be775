"""Finds the model files: `<root>/<name>/<version>/model.onnx`."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A version of a model on disk."""

    name: str
    version: str
    path: Path

    def digest(self) -> str:
        """The SHA-256 of the file, as "sha256:<hex>"."""
        with self.path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def find_models(root: Path) -> list[ModelFile]:
    """List every version of every model below `root`; names that break the rules are left out."""
    return [
        ModelFile(path.parent.parent.name, path.parent.name, path)
        for path in sorted(root.glob("*/*/model.onnx"))
        if _NAME.fullmatch(path.parent.parent.name) and _NAME.fullmatch(path.parent.name)
    ]
