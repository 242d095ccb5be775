"""The signature: what a model takes, answers and remembers (docs/model-format.md)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

Dtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]


class SignatureError(ValueError):
    """A signature that cannot be used; the message says which part and what is expected."""


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output of a model.

    `dims` is the shape of one step of one session. The graph's own tensor also has a
    batch axis and, unless `time_axis` is None, a time axis, at the positions given.
    """

    name: str
    dtype: Dtype
    dims: tuple[int, ...]
    batch_axis: int = 0
    time_axis: int | None = 1
    labels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    kind: Literal["", "probability", "logit", "value"] = ""

    @cached_property
    def np_dtype(self) -> np.dtype[Any]:
        """The element type on the wire and in the graph: little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @cached_property
    def dims_list(self) -> list[int]:
        """`dims`, to be compared with a list."""
        return list(self.dims)

    @cached_property
    def step_bytes(self) -> int:
        """Bytes of one step of one session."""
        return math.prod(self.dims) * self.np_dtype.itemsize

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """Where the axes of `[B, T, *dims]` are in the graph's tensor; a missing time axis is put last."""
        time_axis = len(self.dims) + 1 if self.time_axis is None else self.time_axis
        return _order(len(self.dims) + 2, [self.batch_axis, time_axis])

    def graph_shape(self, batch: int, steps: int) -> tuple[int, ...]:
        """The shape of the graph's tensor for `batch` sessions of `steps` time steps each."""
        shape = _placed((batch, steps, *self.dims), self._order)
        return shape[:-1] if self.time_axis is None else shape

    def rows(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """See the graph's tensor as rows `[B, T, *dims]`, one for each session; a view, to read or to write."""
        if self.time_axis is None:
            tensor = tensor[..., np.newaxis]
        return tensor.transpose(self._order)


@dataclass(frozen=True)
class StateSpec:
    """A tensor that the graph takes in and hands back; `dims` leave out its batch axis."""

    input_name: str
    output_name: str
    dtype: Dtype
    dims: tuple[int, ...]
    batch_axis: int = 0
    initial: float = 0.0

    @cached_property
    def np_dtype(self) -> np.dtype[Any]:
        """The element type."""
        return np.dtype(self.dtype).newbyteorder("<")

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that one session's state takes."""
        return math.prod(self.dims) * self.np_dtype.itemsize

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """Where the axes of `[B, *dims]` are in the graph's tensor."""
        return _order(len(self.dims) + 1, [self.batch_axis])

    def graph_shape(self, batch: int, steps: int = 1) -> tuple[int, ...]:  # noqa: ARG002
        """The shape of the graph's tensor for `batch` sessions."""
        return _placed((batch, *self.dims), self._order)

    def rows(self, tensor: NDArray[Any]) -> NDArray[Any]:
        """See the graph's tensor as rows `[B, *dims]`, one for each session; a view, to read or to write."""
        return tensor.transpose(self._order)


@dataclass(frozen=True)
class Feedback:
    """How an output becomes the next input; `sampled` draws a class index from logits."""

    output: str
    input: str
    sampled: bool = False


@dataclass(frozen=True)
class Signature:
    """Everything the server needs to know to run a model step by step.

    Raises:
        SignatureError: The parts do not fit together.
    """

    FORMAT: ClassVar[int] = 1

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()
    description: str = ""
    step_seconds: float | None = None
    feedback: Feedback | None = None

    def __post_init__(self) -> None:
        """Refuse a signature whose parts contradict one another."""
        if not self.inputs or not self.outputs:
            raise SignatureError("a signature needs at least one input and one output")
        _check_unique("input", [spec.name for spec in self.inputs] + [state.input_name for state in self.states])
        _check_unique("output", [spec.name for spec in self.outputs] + [state.output_name for state in self.states])
        for spec in (*self.inputs, *self.outputs):
            _check_tensor(spec)
        for state in self.states:
            _check_sizes(state.input_name, state.dims)
            if not 0 <= state.batch_axis <= len(state.dims):
                raise SignatureError(
                    f"{state.input_name}: batch_axis {state.batch_axis} must be from 0 to {len(state.dims)}"
                )
        if self.feedback is not None:
            _check_feedback(self, self.feedback)

    @cached_property
    def state_bytes(self) -> int:
        """Bytes of state that one session holds."""
        return sum(state.row_bytes for state in self.states)

    @cached_property
    def has_time(self) -> bool:
        """Whether several steps can be run in one call."""
        return all(spec.time_axis is not None for spec in (*self.inputs, *self.outputs))


def _order(rank: int, places: Sequence[int]) -> tuple[int, ...]:
    """For each axis of the rows where it is in the graph's tensor: the first axes at `places`, the rest in order."""
    return (*places, *(axis for axis in range(rank) if axis not in places))


def _placed(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """The graph's shape for rows of a shape."""
    return tuple(shape[order.index(axis)] for axis in range(len(shape)))


def _check_tensor(spec: TensorSpec) -> None:
    _check_sizes(spec.name, spec.dims)
    axes = [spec.batch_axis] if spec.time_axis is None else [spec.batch_axis, spec.time_axis]
    rank = len(spec.dims) + len(axes)
    if len(set(axes)) != len(axes) or not all(0 <= axis < rank for axis in axes):
        raise SignatureError(f"{spec.name}: batch_axis and time_axis must be two different axes below {rank}")
    width = spec.dims[-1] if spec.dims else 1
    classes = spec.labels and spec.dims == () and spec.np_dtype.kind in "iu"  # the labels name the classes
    if spec.labels and not classes and len(spec.labels) != width:
        raise SignatureError(f"{spec.name}: {len(spec.labels)} labels for {width} entries")
    if len(spec.units) not in (0, 1, width):
        raise SignatureError(f"{spec.name}: {len(spec.units)} units for {width} entries")


def _check_sizes(name: str, dims: Sequence[int]) -> None:
    if not all(size > 0 for size in dims):
        raise SignatureError(f"{name}: dims {list(dims)} must all be above 0")


def _check_feedback(signature: Signature, feedback: Feedback) -> None:
    source = next((spec for spec in signature.outputs if spec.name == feedback.output), None)
    target = next((spec for spec in signature.inputs if spec.name == feedback.input), None)
    if source is None or target is None or len(signature.inputs) != 1:
        raise SignatureError("feedback must name an output and the model's only input")
    if feedback.sampled:
        if target.np_dtype.kind not in "iu" or target.dims != () or len(source.dims) != 1:
            raise SignatureError("sampled feedback needs logits over classes and an integer input with dims []")
        if source.dims[0] - 1 > np.iinfo(target.np_dtype).max:
            raise SignatureError(f"sampled feedback: {target.dtype} cannot number {source.dims[0]} classes")
    elif (source.dims, source.dtype) != (target.dims, target.dtype):
        raise SignatureError("feedback without sampling needs an output of the input's dims and dtype")


def _check_unique(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SignatureError(f"the {what} {name!r} stands twice")
