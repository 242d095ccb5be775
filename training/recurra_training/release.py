"""From a trained network to a published model: export, verify, publish."""

from collections.abc import Sequence
from pathlib import Path

from recurra_training.checkpoint import Trained
from recurra_training.export import export_onnx
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
) -> tuple[Path, list[Check]]:
    """Export a network and publish it, if and only if it verifies.

    Args:
        trained: The network; the facts of its run go into the file.
        models: The model repository.
        name: Name of the model; empty: that of its task.
        version: See `publish`.
        twice: See `publish`.
        sequences: See `verify`.

    Returns:
        The published file, and what was verified.

    Raises:
        ExportError, SignatureError, VerificationError, PublishError: Nothing was published.
    """
    checks: list[Check] = []

    def write(path: Path) -> None:
        facts = {key: value for key, value in trained.facts.items() if key != "versions"}
        export_onnx(trained.network, path, trained.signature, facts)
        checks.extend(verify(path, trained.network, sequences=sequences))

    return publish(models, name or trained.task, write, version, twice=twice), checks
