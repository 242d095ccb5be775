"""Shows the gates of a trained LSTM: the same network, with what happens inside it as further outputs."""

from dataclasses import replace
from typing import Final

from torch import Tensor, nn

from recurra_training.errors import ExportError
from recurra_training.lstm import LSTM, Gates
from recurra_training.models import RecurrentNet
from recurra_training.signature import Signature, TensorSpec

GATES: Final = Gates._fields
"""Names of the outputs, in their order: f, i, c_tilde, o, c."""


class WithGates(nn.Module):
    """A trained network that also answers its gates: `(y, f, i, c_tilde, o, c, h, c)`.

    y and the states come from the network itself, unchanged to the last bit. The gates are computed beside it by `LSTM`
    with a copy of its weights, so in the exported graph they are a branch of their own: cut off, it costs nothing. The
    server cuts it off where no caller asks for them (docs/model-format.md).
    """

    state_names = ("h", "c")

    def __init__(self, network: RecurrentNet) -> None:
        """Look into a network.

        Raises:
            ExportError: It is no LSTM.
        """
        super().__init__()
        if not isinstance(network.recurrence, nn.LSTM):
            kind = type(network.recurrence).__name__
            raise ExportError(f"gates are those of an LSTM, and this network is a {kind}; export it without --gates")
        self.network = network
        self.watched = LSTM.from_torch(network.recurrence)

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        """As the network's."""
        return self.network.initial_states(batch)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """`x` `[B, T, inputs]` and the states before -> y, the gates `[B, T, layers, hidden]`, the states after."""
        y, *after = self.network(x, h, c)
        _, *inside = self.watched(self.network.read(x), h, c)
        return y, *inside[: len(GATES)], *after


def with_gates(network: nn.Module, signature: Signature) -> tuple[nn.Module, Signature]:
    """A trained network and its signature, to be exported with its gates as outputs behind its own.

    Raises:
        ExportError: It is no LSTM.
    """
    if not isinstance(network, RecurrentNet):
        raise ExportError("gates are those of an LSTM, and this network has no memory; export it without --gates")
    return WithGates(network), add_gates(signature)


def add_gates(signature: Signature) -> Signature:
    """The signature of an LSTM with the gates as further outputs; their dims, `[layers, hidden]`, are those of c."""
    dims = signature.states[-1].dims
    gates = tuple(TensorSpec(name, "float32", dims, kind="value", optional=True) for name in GATES)
    return replace(signature, outputs=(*signature.outputs, *gates))


def has_gates(signature: Signature) -> bool:
    """Whether a model answers its gates."""
    return tuple(spec.name for spec in signature.outputs[1:]) == GATES
