"""Puts a model file into the model repository: `<models>/<name>/<version>/model.onnx` (docs/model-format.md)."""

import errno
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp
from typing import Final

from recurra_training.errors import PublishError

MODEL_FILE: Final = "model.onnx"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def publish(models: Path, name: str, write: Callable[[Path], None], version: str = "", *, twice: bool = True) -> Path:
    """Let `write` make a model file, and make it a version of the model once it has succeeded.

    The file appears at once and whole: it is written in a hidden folder beside the versions, which is then renamed.
    If `write` raises, nothing is left.

    Args:
        models: The repository.
        name: Name of the model.
        write: Writes, and verifies, the file at the path it is given.
        version: The version; empty: one above the highest number there is.
        twice: Whether a file that is a version already is made another one; if not, that version is returned.

    Returns:
        The published file.

    Raises:
        PublishError: Name or version is not allowed, the version is there already, or there are versions that are
            no numbers and none is given.
    """
    check_publishable(models, name, version)
    folder = models / name
    folder.mkdir(parents=True, exist_ok=True)
    hidden = Path(mkdtemp(prefix=".", suffix=".partial", dir=folder))
    try:
        write(hidden / MODEL_FILE)
        there = None if twice else _same(hidden / MODEL_FILE, folder)
        if there:
            return there
        hidden.chmod(0o755)  # mkdtemp lets nobody else in; a server may be somebody else
        target = folder / (version or _next_version(folder))
        _rename(hidden, target)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()
    return target / MODEL_FILE


def check_publishable(models: Path, name: str, version: str = "") -> None:
    """Complain of a name or version before the work is done.

    Raises:
        PublishError: As `publish`.
    """
    for what, value in (("name", name), ("version", version or "1")):
        if not _NAME.fullmatch(value):
            raise PublishError(
                f"{what} {value!r} must be 1 to 64 of A-Z a-z 0-9 . _ -, and begin with a letter or digit"
            )
    folder = models / name
    if version and (folder / version).exists():
        raise PublishError(f"{folder / version} is there already; versions are not overwritten, give another")
    if not version:
        _next_version(folder)


def _same(file: Path, folder: Path) -> Path | None:
    """The version that is this very file, if there is one."""
    others = (path for path in folder.glob(f"[!.]*/{MODEL_FILE}") if path.stat().st_size == file.stat().st_size)
    return next((path for path in others if path.read_bytes() == file.read_bytes()), None)


def _rename(hidden: Path, target: Path) -> None:
    try:
        hidden.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        raise PublishError(f"{target} came to be meanwhile; publish again") from None


def _next_version(folder: Path) -> str:
    there = [path.name for path in folder.glob("*") if _NAME.fullmatch(path.name)]
    if other := [name for name in there if not name.isdecimal()]:
        raise PublishError(f"{folder} has a version {other[0]!r} that is no number; say --version")
    return str(max((int(name) for name in there), default=0) + 1)
