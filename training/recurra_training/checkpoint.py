"""Reads a trained network back from a run folder or a checkpoint file."""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, NamedTuple

import torch

from recurra_training.errors import RunError
from recurra_training.models import Network, NetworkConfig
from recurra_training.signature import Signature

CHECKPOINT_KEY: Final = "recurra"
BEST: Final = Path("checkpoints", "best.ckpt")
LAST: Final = Path("checkpoints", "last.ckpt")
FACTS: Final = "run.json"


class Trained(NamedTuple):
    """A trained network in evaluation mode, and what is known of it."""

    task: str
    network: Network
    signature: Signature
    facts: dict[str, Any]
    """What `run.json` says; empty if the run is not finished."""


def load_trained(path: Path) -> Trained:
    """Read a run folder (its best weights) or a checkpoint file.

    Raises:
        RunError: There is no checkpoint, or it is not one of `recurra train`.
    """
    file = path / BEST if path.is_dir() else path
    if not file.is_file():
        raise RunError(f"{file} is missing; give the folder of a run, or a checkpoint that `recurra train` has written")
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
        contents = checkpoint[CHECKPOINT_KEY]
        network = NetworkConfig(**contents["network"]).build()
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
