"""From a trained network to published models: export, verify, publish."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from recurra_verification import Array
from torch import nn

from recurra_training.checkpoint import Trained
from recurra_training.data.task import Task
from recurra_training.export import export_onnx
from recurra_training.gates import with_gates
from recurra_training.precision import Precision, reduce_precision
from recurra_training.publish import publish
from recurra_training.seq2seq import EncoderDecoder, halves
from recurra_training.signature import Signature
from recurra_training.verify import TOLERANCE, Check, verify


class Published(NamedTuple):
    """A model in the repository, and what was verified before it came there."""

    path: Path
    checks: list[Check]


def release(
    trained: Trained,
    models: Path,
    *,
    name: str = "",
    version: str = "",
    sequences: Sequence[Array] = (),
    twice: bool = True,
    gates: bool = False,
    precision: Precision = "float32",
    tolerance: float = TOLERANCE,
) -> list[Published]:
    """Export a network and publish it, if and only if it verifies.

    An encoder-decoder becomes two models, `<name>-encoder` and `<name>-decoder`; everything else is one.

    Args:
        trained: The network; the facts of its run go into the file.
        models: The model repository.
        name: Name of the model; empty: that of its task.
        version: See `publish`.
        sequences: See `verify`.
        twice: See `publish`.
        gates: With the gates of an LSTM as further outputs.
        precision: See `reduce_precision`.
        tolerance: See `verify`. With less than float32, it is not compared with PyTorch, which would differ by more.

    Raises:
        ExportError, SignatureError, VerificationError, PublishError: The model at fault was not published.
    """
    name = name or trained.task
    facts = {key: value for key, value in trained.facts.items() if key not in ("versions", "seconds")}
    published = []
    for ending, network, signature in parts(trained, gates=gates):
        checks: list[Check] = []

        def write(
            path: Path, network: nn.Module = network, signature: Signature = signature, checks: list[Check] = checks
        ) -> None:
            export_onnx(network, path, signature, facts)
            reduce_precision(path, path, precision)
            compared = network if precision == "float32" else None
            checks.extend(verify(path, compared, sequences=sequences, tolerance=tolerance))

        published.append(Published(publish(models, name + ending, write, version, twice=twice), checks))
    return published


def parts(trained: Trained, *, gates: bool = False) -> list[tuple[str, nn.Module, Signature]]:
    """The models that a network is served as: the ending of the name, the network, its signature."""
    network, signature = trained.network, trained.signature
    if isinstance(network, EncoderDecoder):
        return halves(network, signature)
    if gates:
        network, signature = with_gates(network, signature)
    return [("", network, signature)]


def sequences_of(task: Task) -> list[Array]:
    """Real inputs to verify with: those that the network was chosen by."""
    return [] if task.source_tokens else [recording.x for recording in task.split().validation[:100]]
