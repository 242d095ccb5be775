"""The memory that model calls work in: set aside once for each shape, and used again and again."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.ports import Runtime
from recurra_server.engine.signature import Signature, StateSpec, TensorSpec
from recurra_server.engine.steps import Buffer

Array = NDArray[Any]


@dataclass(slots=True)
class Tensor:
    """One tensor of a model call.

    Attributes:
        name: As the signature calls it.
        graph: As the graph has it, contiguous.
        rows: The same memory with the sessions first: `[B, T, *dims]`, or `[B, *dims]` for a state.
        raw: The bytes of the rows, one after the other, or None where the graph has them in another order.
    """

    name: str
    graph: Array
    rows: Array
    raw: memoryview | None
    _flat: Array

    @classmethod
    def of(cls, spec: TensorSpec | StateSpec, graph: Array) -> "Tensor":
        """See a graph's contiguous tensor as what it is."""
        rows = spec.rows(graph)
        raw = rows.reshape(-1).view(np.uint8).data if rows.flags.c_contiguous else None
        name = spec.input_name if isinstance(spec, StateSpec) else spec.name
        return cls(name, graph, rows, raw, graph.reshape(-1))

    def put(self, data: Buffer) -> None:
        """Fill it with the bytes of all rows, one after the other."""
        if self.raw is not None:
            self.raw[:] = data
        else:
            self.rows[...] = np.frombuffer(data, self.rows.dtype).reshape(self.rows.shape)

    def split(self) -> list[bytes]:
        """The bytes of each row."""
        data = self.rows.tobytes()
        count = len(self.rows)
        if count == 1:
            return [data]
        width = len(data) // count
        return [data[start : start + width] for start in range(0, len(data), width)]

    def all_finite(self) -> bool:
        """Whether it surely holds neither NaN nor infinity. False may also mean very large values: look again.

        The sum of squares is not finite if any element is not, and is had in one pass without a temporary array.
        """
        return self._flat.dtype.kind != "f" or math.isfinite(np.vdot(self._flat, self._flat))

    def rows_not_finite(self) -> list[int]:
        """The rows that hold NaN or infinity; integers never do."""
        if self._flat.dtype.kind != "f":
            return []
        good = np.isfinite(self.rows).reshape(len(self.rows), -1).all(axis=1)
        found: list[int] = np.flatnonzero(~good).tolist()
        return found


@dataclass(slots=True)
class Workspace:
    """The tensors of one model call for B sessions and T time steps, and the call itself."""

    inputs: list[Tensor]
    states: list[Tensor]
    outputs: list[Tensor]
    next_states: list[Tensor]
    run: Callable[[], None]


class Workspaces:
    """The workspaces of one model. They share their memory, so only one of them can be in use at a time."""

    def __init__(self, signature: Signature, runtime: Runtime) -> None:
        self._inputs: tuple[TensorSpec | StateSpec, ...] = (*signature.inputs, *signature.states)
        self._outputs: tuple[TensorSpec | StateSpec, ...] = (*signature.outputs, *signature.states)
        self._states_at = len(signature.inputs), len(signature.outputs)
        self._runtime = runtime
        self._memory: list[Array] = [np.empty(0, np.uint8)] * (len(self._inputs) + len(self._outputs))
        self._made: dict[tuple[int, int], Workspace] = {}

    def get(self, batch: int, steps: int) -> Workspace:
        """The workspace for `batch` sessions and `steps` time steps of each.

        Raises:
            MemoryError: There is none left for it.
        """
        return self._made.get((batch, steps)) or self._make(batch, steps)

    def _make(self, batch: int, steps: int) -> Workspace:
        specs = (*self._inputs, *self._outputs)
        shapes = [spec.graph_shape(batch, steps) for spec in specs]
        self._reserve([math.prod(shape) * spec.np_dtype.itemsize for spec, shape in zip(specs, shapes, strict=True)])
        tensors = [
            Tensor.of(spec, _view(memory, spec.np_dtype, shape))
            for spec, shape, memory in zip(specs, shapes, self._memory, strict=True)
        ]
        ins, outs = tensors[: len(self._inputs)], tensors[len(self._inputs) :]
        run = self._runtime.bind([tensor.graph for tensor in ins], [tensor.graph for tensor in outs])
        inputs, outputs = self._states_at
        made = Workspace(ins[:inputs], ins[inputs:], outs[:outputs], outs[outputs:], run)
        self._made[batch, steps] = made
        return made

    def _reserve(self, sizes: Sequence[int]) -> None:
        """See that there is memory of these sizes in bytes; more is set aside, so that it seldom grows."""
        if any(size > len(memory) for size, memory in zip(sizes, self._memory, strict=True)):
            self._made.clear()  # they work in the memory that goes
            # Pages that are not written to take no memory.
            self._memory = [np.empty(2 * size, np.uint8) for size in sizes]


def _view(memory: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    return memory[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
