"""Reads a trained network back from a run folder or a checkpoint file."""

import json
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from recurra_training.build import build
from recurra_training.errors import RunError
from recurra_training.models import NetworkConfig
from recurra_training.signature import Signature

CHECKPOINT_KEY: Final = "recurra"
BEST: Final = Path("checkpoints", "best.ckpt")
LAST: Final = Path("checkpoints", "last.ckpt")
FACTS: Final = "run.json"


class Trained(NamedTuple):
    """A trained network in evaluation mode, and what is known of it."""

    task: str
    network: nn.Module
    signature: Signature
    facts: dict[str, Any]
    """What `run.json` says; empty if the run is not finished."""


def load_trained(path: Path, make: Callable[[], nn.Module] | None = None) -> Trained:
    """Read a run folder (its best weights) or a checkpoint file.

    Args:
        path: The folder or the file.
        make: Makes a network of one's own, of the kind that was trained; None: it is one of `models`.

    Raises:
        RunError: There is no checkpoint, or it is not one of `recurra train`.
    """
    file = path / BEST if path.is_dir() else path
    if not file.is_file():
        raise RunError(f"{file} is missing; give the folder of a run, or a checkpoint that `recurra train` has written")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        contents = checkpoint[CHECKPOINT_KEY]
        if make is None and contents["network"] is None:
            raise RunError(f"{file} is of a network of one's own; give what makes one: load_trained(path, make)")
        network = make() if make else build(NetworkConfig(**contents["network"]))
        prefix = "network."
        weights = {key.removeprefix(prefix): value for key, value in checkpoint["state_dict"].items()}
        network.load_state_dict(weights)
    except (KeyError, TypeError, RuntimeError, UnpicklingError, EOFError) as error:
        raise RunError(f"{file} is not a checkpoint of `recurra train` ({type(error).__name__})") from error
    facts = file.parent.parent / FACTS
    return Trained(
        contents["task"],
        network.eval(),
        Signature.from_json(contents["signature"]),
        json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {},
    )
