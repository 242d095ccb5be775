"""From a trained network to a published model: export, verify, publish."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from recurra_training.checkpoint import Trained
from recurra_training.export import export_onnx
from recurra_training.gates import with_gates
from recurra_training.publish import publish
from recurra_training.runner import Array
from recurra_training.verify import Check, verify


def release(
    trained: Trained,
    models: Path,
    *,
    name: str = "",
    version: str = "",
    sequences: Sequence[Array] = (),
    twice: bool = True,
    gates: bool = False,
) -> tuple[Path, list[Check]]:
    """Export a network and publish it, if and only if it verifies.

    Args:
        trained: The network; the facts of its run go into the file.
        models: The model repository.
        name: Name of the model; empty: that of its task.
        version: See `publish`.
        twice: See `publish`.
        gates: With the gates of an LSTM as further outputs.
        sequences: See `verify`.

    Returns:
        The published file, and what was verified.

    Raises:
        ExportError, SignatureError, VerificationError, PublishError: Nothing was published.
    """
    checks: list[Check] = []
    network: nn.Module = trained.network
    signature = trained.signature
    if gates:
        network, signature = with_gates(network, signature)

    def write(path: Path) -> None:
        facts = {key: value for key, value in trained.facts.items() if key != "versions"}
        export_onnx(network, path, signature, facts)
        checks.extend(verify(path, network, sequences=sequences))

    return publish(models, name or trained.task, write, version, twice=twice), checks
