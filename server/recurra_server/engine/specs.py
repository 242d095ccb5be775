"""The parts of a signature: how one tensor of a model is typed, sized and placed (docs/model-format.md)."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from recurra_server.engine.layout import Layout

Dtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]
Array = NDArray[Any]
# A number for all elements, or nested lists of a tensor's shape.
Value = int | float | list[Any]  # an int64 may be more exact than a float


class SignatureError(ValueError):
    """A signature that cannot be used; the message says which part and what is expected."""


class _Typed:
    """What follows from a dtype."""

    dtype: Dtype

    @cached_property
    def np_dtype(self) -> np.dtype[Any]:
        """The element type on the wire and in the graph: little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")


class _Timeless(_Typed):
    """What follows from the place of the batch axis, for a tensor without a time axis."""

    dims: tuple[int, ...]
    batch_axis: int | None

    @cached_property
    def layout(self) -> Layout:
        """Where the axes of `[B, *dims]` are in the graph's tensor."""
        return Layout.of(len(self.dims) + 1, (self.batch_axis,))

    def graph_shape(self, batch: int, steps: int = 1) -> tuple[int, ...]:  # noqa: ARG002
        """The shape of the graph's tensor for `batch` sessions."""
        return self.layout.shape((batch, *self.dims))


@dataclass(frozen=True)
class TensorSpec(_Typed):
    """An input or an output of a model.

    `dims` is the shape of one step of one session. The graph's own tensor also has a
    batch axis and a time axis at the positions given, unless they are None.

    An input with a `context` of K also has the last K entries of what came before in front of each step, along
    `context_axis` of its `dims`, or along the time axis where that is None.

    An `optional` output is computed and answered only where it is asked for by its name.
    """

    name: str
    dtype: Dtype
    dims: tuple[int, ...]
    batch_axis: int | None = 0
    time_axis: int | None = 1
    labels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    kind: Literal["", "probability", "logit", "value"] = ""
    context: int = 0
    context_axis: int | None = 0
    optional: bool = False

    @property
    def graph_name(self) -> str:
        """The name of what goes into the graph, or comes out."""
        return self.name

    @cached_property
    def dims_list(self) -> list[int]:
        """`dims`, to be compared with a list."""
        return list(self.dims)

    @cached_property
    def step_bytes(self) -> int:
        """Bytes of one step of one session."""
        return math.prod(self.dims) * self.np_dtype.itemsize

    @cached_property
    def one_step(self) -> bool:
        """Whether a call can only take one time step of it."""
        return self.time_axis is None or bool(self.context and self.context_axis is not None)

    @cached_property
    def layout(self) -> Layout:
        """Where the axes of `[B, T, *dims]` are in the graph's tensor."""
        return Layout.of(len(self.dims) + 2, (self.batch_axis, self.time_axis))

    @cached_property
    def _context_at(self) -> int:
        """The axis of the rows along which the context lies."""
        return 1 if self.context_axis is None else 2 + self.context_axis

    def graph_shape(self, batch: int, steps: int) -> tuple[int, ...]:
        """The shape of the graph's tensor for `batch` sessions of `steps` time steps each."""
        sizes = [batch, steps, *self.dims]
        if self.context:
            sizes[self._context_at] += self.context
        return self.layout.shape(sizes)

    def rows(self, tensor: Array) -> Array:
        """See the graph's tensor as rows `[B, T, *dims]` without context; a view, to read or to write."""
        rows = self.layout.rows(tensor)
        return rows[(slice(None),) * self._context_at + (slice(self.context, None),)] if self.context else rows

    def context_rows(self, tensor: Array) -> tuple[Array, Array]:
        """See the context in the graph's tensor, before this call and after it: views `[B, *dims of the context]`."""
        rows = self.layout.rows(tensor)
        before = (slice(None),) * self._context_at
        parts = rows[(*before, slice(self.context))], rows[(*before, slice(-self.context, None))]
        return parts if self.context_axis is None else (parts[0][:, 0], parts[1][:, 0])


@dataclass(frozen=True)
class StateSpec(_Timeless):
    """A tensor that the graph takes in and hands back; `dims` leave out its batch axis."""

    input_name: str
    output_name: str
    dtype: Dtype
    dims: tuple[int, ...]
    batch_axis: int | None = 0
    initial: Value = 0.0

    @property
    def graph_name(self) -> str:
        """The name of what goes into the graph."""
        return self.input_name

    def rows(self, tensor: Array) -> Array:
        """See the graph's tensor as rows `[B, *dims]`, one for each session; a view, to read or to write."""
        return self.layout.rows(tensor)


@dataclass(frozen=True)
class ConstantSpec(_Timeless):
    """A graph input that stays the same: for all sessions (a sampling rate), or for each (a speaker's embedding).

    `batch_axis` None: the graph takes one value for the whole batch, so only sessions of equal values share one.
    """

    name: str
    dtype: Dtype
    dims: tuple[int, ...] = ()
    value: Value | None = None
    per_session: bool = False
    batch_axis: int | None = None

    @property
    def graph_name(self) -> str:
        """The name of what goes into the graph."""
        return self.name

    def rows(self, tensor: Array, batch: int) -> Array:
        """See the graph's tensor as rows `[B, *dims]`; without a batch axis all of them are the same memory."""
        rows = self.layout.rows(tensor)
        if self.batch_axis is None:
            return as_strided(rows, (batch, *self.dims), (0, *rows.strides[1:]))
        return rows

    def filled(self, batch: int) -> Array:
        """A tensor for the graph that holds the value, or zeros where it has none."""
        graph = np.zeros(self.graph_shape(batch), self.np_dtype)
        if self.value is not None:
            self.rows(graph, batch)[...] = as_array(self.value, self)
        return graph


@dataclass(frozen=True, eq=False)
class Kept(_Typed):
    """What is kept of a session from one step to the next, whatever for: a column of the slot table.

    Attributes:
        initial: What it is before the first step, as `[*dims]` or one number; None where a caller must say it.
        constant: Whether it stays what it was when the session was opened.
    """

    name: str
    dtype: Dtype
    dims: tuple[int, ...]
    initial: Array | None
    constant: bool = False

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that it takes for one session."""
        return math.prod(self.dims) * self.np_dtype.itemsize


def as_array(value: Value, spec: StateSpec | ConstantSpec) -> Array:
    """A value of a signature as an array `[*dims]`, or `[]` for a number.

    Raises:
        SignatureError: It is of another shape, or no value of this dtype.
    """
    name = spec.graph_name
    if not isinstance(value, list):
        given = np.array(value)
    else:
        try:
            given = np.array(value, None if value else spec.np_dtype)
        except ValueError:
            raise SignatureError(f"{name}: the lists of its value are not all of one length") from None
        if given.shape != spec.dims:
            raise SignatureError(f"{name}: its value has shape {list(given.shape)}; its dims are {list(spec.dims)}")
    with np.errstate(all="ignore"):
        if given.dtype.kind not in "biuf" or not np.isfinite(given).all():
            raise SignatureError(f"{name}: its value must be finite numbers")
        array = given.astype(spec.np_dtype)
        exact = array.dtype.kind == "f" or np.array_equal(array, given)
    if not exact or not np.isfinite(array).all():
        raise SignatureError(f"{name}: {spec.dtype} cannot hold its value")
    return array
