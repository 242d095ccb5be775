"""The memory that model calls work in: set aside once, and used again and again by calls of all shapes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.ports import Runtime
from recurra_server.engine.signature import ConstantSpec, Signature, StateSpec, TensorSpec
from recurra_server.engine.steps import Buffer

Array = NDArray[Any]
_Spec = TensorSpec | StateSpec | ConstantSpec


@dataclass(slots=True)
class Tensor:
    """One tensor of a model call.

    Attributes:
        name: As the signature calls it.
        graph: The graph's tensor, contiguous.
        rows: Its memory, or the part meant, with the sessions first: `[B, T, *dims]`, or `[B, *dims]` for a state.
        raw: The bytes of the rows, one after the other, or None where they cannot be taken as they come.
    """

    name: str
    graph: Array
    rows: Array
    raw: memoryview | None
    _flat: Array

    @classmethod
    def of(cls, name: str, rows: Array, graph: Array) -> "Tensor":
        """See a graph's contiguous tensor, or the part of it that `rows` are, as what it is."""
        plain = rows.flags.c_contiguous and rows.dtype.kind != "b"  # not every byte is a bool
        raw = rows.reshape(-1).view(np.uint8).data if plain else None
        return cls(name, graph, rows, raw, graph.reshape(-1) if rows.size == graph.size else rows)

    def put(self, data: Buffer) -> None:
        """Fill it with the bytes of all rows, one after the other."""
        if self.raw is not None:
            self.raw[:] = data
        else:
            self.rows[...] = from_bytes(data, self.rows.dtype).reshape(self.rows.shape)

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
    """The tensors of one model call for B sessions and T time steps, and the call itself.

    Attributes:
        inputs, outputs: In the signature's order; optional outputs only where the call computes them.
        kept: Where what is kept of the sessions goes before the call, in the order of `Signature.kept`.
        next: Where it is to be taken from after the call.
        run: The call.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    kept: list[Tensor]
    next: list[Tensor]
    run: Callable[[], None]


class Workspaces:
    """The workspaces of one model. They share their memory, so only one of them can be in use at a time."""

    def __init__(self, signature: Signature, runtime: Runtime) -> None:
        self._signature = signature
        self._specs: tuple[_Spec, ...] = (
            *signature.inputs,
            *signature.states,
            *signature.own_constants,
            *signature.fixed_constants,
            *signature.outputs,
            *signature.states,
        )
        self._fixed = [spec.rows(spec.filled(1), 1) for spec in signature.fixed_constants]
        self._runtime = runtime
        self._memory: list[Array] = [np.empty(0, np.uint8)] * len(self._specs)
        self._made: dict[tuple[int, int, bool], Workspace] = {}

    def get(self, batch: int, steps: int, in_full: bool = False) -> Workspace:
        """The workspace for `batch` sessions and `steps` time steps of each; `in_full` with the optional outputs.

        Raises:
            MemoryError: There is none left for it.
        """
        return self._made.get((batch, steps, in_full)) or self._make(batch, steps, in_full)

    def _make(self, batch: int, steps: int, in_full: bool) -> Workspace:
        signature = self._signature
        self._reserve([math.prod(spec.graph_shape(batch, steps)) * spec.np_dtype.itemsize for spec in self._specs])
        memory = iter(self._memory)

        def place(specs: Sequence[_Spec]) -> list[Array]:
            return [_view(next(memory), spec.np_dtype, spec.graph_shape(batch, steps)) for spec in specs]

        inputs, states, constants = place(signature.inputs), place(signature.states), place(signature.own_constants)
        fixed = place(signature.fixed_constants)
        every, next_states = place(signature.outputs), place(signature.states)
        answered = signature.outputs_of(in_full=in_full)
        outputs = [graph for spec, graph in zip(signature.outputs, every, strict=True) if spec in answered]
        run = self._runtime.bind([*inputs, *states, *constants, *fixed], [*outputs, *next_states], in_full=in_full)
        for constant, value, graph in zip(signature.fixed_constants, self._fixed, fixed, strict=True):
            rows = constant.rows(graph, batch)
            rows[...] = value
            if constant.batch_axis:  # else a call of fewer sessions has the beginning of the same
                run = partial(_put_and_run, rows, value, run)

        kept, following = _seen(signature.states, states), _seen(signature.states, next_states)
        for constant, graph in zip(signature.own_constants, constants, strict=True):  # comes out as it went in
            kept.append(Tensor.of(constant.name, constant.rows(graph, batch), graph))
            following.append(kept[-1])
        for spec, graph in zip(signature.inputs, inputs, strict=True):
            if spec.context:  # first the front of the input, then its end
                before, after = spec.context_rows(graph)
                kept.append(Tensor.of(spec.name, before, graph))
                following.append(Tensor.of(spec.name, after, graph))
        made = Workspace(_seen(signature.inputs, inputs), _seen(answered, outputs), kept, following, run)
        self._made[batch, steps, in_full] = made
        return made

    def _reserve(self, sizes: Sequence[int]) -> None:
        """See that there is memory of these sizes in bytes. It never shrinks, and grows by more, so that it settles."""
        if any(size > len(memory) for size, memory in zip(sizes, self._memory, strict=True)):
            self._made.clear()  # they work in the memory that goes
            # Pages that are not written to take no memory.
            self._memory = [
                memory if size <= len(memory) else np.empty(2 * size, np.uint8)
                for size, memory in zip(sizes, self._memory, strict=True)
            ]


def from_bytes(data: Buffer, dtype: np.dtype[Any]) -> Array:
    """Little-endian bytes as an array `[N]`; as a bool, every byte but 0 is true."""
    return np.frombuffer(data, np.uint8) != 0 if dtype.kind == "b" else np.frombuffer(data, dtype)


def _seen(specs: Sequence[TensorSpec | StateSpec], graphs: Sequence[Array]) -> list[Tensor]:
    return [Tensor.of(spec.graph_name, spec.rows(graph), graph) for spec, graph in zip(specs, graphs, strict=True)]


def _put_and_run(rows: Array, value: Array, run: Callable[[], None]) -> None:
    """Put a constant in its places, where a call of another size may have had others; then run the model."""
    rows[...] = value
    run()


def _view(memory: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    return memory[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
