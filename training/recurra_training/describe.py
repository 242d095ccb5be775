"""Derives the signature of a network from the network itself."""

from typing import Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from recurra_training.errors import ExportError
from recurra_training.models import Network
from recurra_training.signature import Dtype, Feedback, Kind, Signature, StateSpec, TensorSpec

_DTYPES: Final[dict[torch.dtype, Dtype]] = {
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
}


@runtime_checkable
class HasStates(Protocol):
    """All that is asked of a network besides `forward(x, *states) -> (y, *states)`.

    An attribute `state_names` may name the states; else they are called state_0, state_1 ...
    """

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        """The states before the first step of `batch` sequences, each with a batch axis."""
        ...


def describe(
    network: HasStates,
    x: TensorSpec | None = None,
    y: TensorSpec | None = None,
    *,
    kind: Kind = "value",
    description: str = "",
    step_seconds: float | None = None,
    feedback: Feedback | None = None,
) -> Signature:
    """The signature of a network.

    Args:
        network: The network.
        x: Its input; None: float32 `[network.inputs]` by the name of x.
        y: Its output; None: float32 `[network.outputs]` of the kind given, by the name of y.
        kind: Kind of the output where `y` is None.
        description: One sentence for people.
        step_seconds: Time between two steps of the training data.
        feedback: How the output becomes the next input.

    Raises:
        ExportError: A state has no batch axis, or does not begin with one value throughout.
    """
    if x is None or y is None:
        if not isinstance(network, Network):
            raise ExportError(f"say what {type(network).__name__} takes and answers: describe(network, x, y)")
        x = x or TensorSpec("x", "float32", (network.inputs,))
        y = y or TensorSpec("y", "float32", (network.outputs,), kind=kind)
    two, three = network.initial_states(2), network.initial_states(3)
    names = getattr(network, "state_names", ()) or tuple(f"state_{index}" for index in range(len(two)))
    states = tuple(_state(*parts) for parts in zip(names, two, three, strict=True))
    return Signature((x,), (y,), states, description, step_seconds, feedback)


def _state(name: str, two: Tensor, three: Tensor) -> StateSpec:
    """The axis that grows with the batch is the batch axis."""
    grown = [axis for axis, sizes in enumerate(zip(two.shape, three.shape, strict=True)) if sizes == (2, 3)]
    if len(grown) != 1:
        raise ExportError(f"state {name}: initial_states(batch) must give it one axis of size batch")
    values = torch.unique(two)
    if len(values) != 1:
        raise ExportError(f"state {name}: a state must begin with one value in all its elements")
    dims = tuple(size for axis, size in enumerate(two.shape) if axis != grown[0])
    return StateSpec(f"{name}_in", f"{name}_out", _DTYPES[two.dtype], dims, grown[0], float(values[0]))
