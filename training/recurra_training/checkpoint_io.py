"""Writes checkpoints whole or not at all."""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Replaces a checkpoint by the next one in one move, so that a kill at any moment leaves one to go on from.

    Lightning's own way fills a file in the system's temporary folder; moving that to another file system is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write beside the target, to the disk, then rename."""
        del storage_options
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=target.parent, prefix=".", suffix=".partial", delete=False) as file:
            try:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(target)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
