"""Finds the model files: `<root>/<name>/<version>/model.onnx`."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from recurra_server.engine.errors import ModelNotFoundError, ModelRefusedError, shown

_MODEL = "model.onnx"
_DESCRIPTION = "model.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A version of a model on disk."""

    name: str
    version: str
    path: Path

    def digest(self) -> str:
        """What the version is, as "sha256:<hex>": the SHA-256 of model.onnx where that is its only file.

        Else of a list of all files of its folder, each as a line of its own SHA-256, two blanks and its path, sorted
        by path: what `sha256sum` prints.

        Raises:
            OSError: A file cannot be read, or is a link out of the folder; of model.onnx and model.yaml, which may be
                links to another place in the repository, one out of that.
        """
        folder = self.path.parent
        paths = sorted(folder.rglob("*"))
        for path in paths:
            anywhere = path in (self.path, self.path.with_name(_DESCRIPTION))
            within, where = (self.path.parents[2], "repository") if anywhere else (folder, "model's folder")
            if not path.resolve().is_relative_to(within.resolve()):
                raise OSError(f"{path.name} is a link out of the {where}; put the file there")
        files = [path for path in paths if path.is_file()]
        digests = {path.relative_to(folder).as_posix(): _sha256(path) for path in files}
        if len(digests) == 1:
            return f"sha256:{digests[self.path.name]}"
        lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
        return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_models(root: Path) -> list[ModelFile]:
    """List every version of every model below `root`; names that break the rules, and links that lead out, are not."""
    inside = root.resolve()
    return [
        ModelFile(path.parent.parent.name, path.parent.name, path)
        for path in sorted(root.glob(f"*/*/{_MODEL}"))
        if _NAME.fullmatch(path.parent.parent.name)
        and _NAME.fullmatch(path.parent.name)
        and path.resolve().is_relative_to(inside)
    ]


def refuse_what_none_has(name: str, version: str, digest: str = "") -> None:
    """Refuse what no model can be called, so that a caller's text of any length and kind goes no further.

    Args:
        name: Of the model.
        version: Of it; empty for whichever.
        digest: Of it; empty for any.

    Raises:
        ModelNotFoundError: No model or no version can have this name.
        ModelRefusedError: No files can have this digest.
    """
    if not all(_NAME.fullmatch(text) for text in (name, version or name)):
        raise ModelNotFoundError(
            f"the model repository has no {shown(name)}" + (f" {shown(version)}" if version else "") + ": names and "
            "versions are 1 to 64 characters of A-Z a-z 0-9 . _ -, and begin with a letter or a digit",
            model=name[:64],
            version=version[:64] or "latest",
        )
    if digest and not _DIGEST.fullmatch(digest):
        raise ModelRefusedError(
            f'no model has the digest {shown(digest)}: one is "sha256:" and 64 hexadecimal digits',
            model=name,
            version=version or "latest",
        )
