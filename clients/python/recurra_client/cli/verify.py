"""The command `recurra verify`: the server's part, or training's where the network is there."""

import importlib.metadata
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, validators

from recurra_client.cli.usererror import UserError

_Tolerance = Annotated[float, Parameter(validator=validators.Number(gt=0))]


def verify(
    model: Annotated[Path, Parameter(show_default=False)],
    /,
    *,
    checkpoint: Path | None = None,
    tolerance: _Tolerance = 1e-5,
    operators: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
) -> None:
    """Prove that a model answers alike step by step, in chunks and whole, alone and in a batch.

    Parameters
    ----------
    model
        A model.onnx that says what it takes and remembers, or has a model.yaml beside it that does; or a folder: all
        below it are verified.
    checkpoint
        The run folder or checkpoint that the file was exported from, to compare with PyTorch as well.
    tolerance
        Largest difference that is allowed: absolute for values up to 1, relative for larger ones.
    operators
        Shared libraries of custom operators that the model may use; those that `recurra train` exports use none.
    """
    part, extra = ("model", "server") if checkpoint is None else ("checkpoint", "training")
    (entry,) = importlib.metadata.entry_points(group="recurra.verify", name=part)
    try:
        prove = entry.load()
    except ImportError as error:
        if (error.name or "").startswith("recurra"):
            raise
        raise UserError(f"verify needs the {extra} extra: pip install '.[{extra}]' in Recurra's folder") from None
    if checkpoint is None:
        prove(model, tolerance=tolerance, operators=operators)
    else:
        prove(model, checkpoint, tolerance=tolerance)
