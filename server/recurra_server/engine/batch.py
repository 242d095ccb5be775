"""A batch: steps of different sessions that run in one model call."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.signature import Signature, TensorSpec
from recurra_server.engine.slots import Slots
from recurra_server.engine.steps import Buffer, Step

Array = NDArray[Any]


@dataclass(slots=True)
class Batch:
    """One model call: `feeds` for the runtime, and what is needed to commit what it returns.

    Attributes:
        steps: The B steps, each of another session.
        length: T, the number of time steps run of each.
        slots: For each step, the slot that its states came from.
        feeds: Inputs and states by name, as the graph takes them.
        begins_chunks: Whether some of the steps are chunks of several pieces, of which this is the first.
    """

    steps: list[Step]
    length: int
    slots: Slots
    feeds: dict[str, Array]
    begins_chunks: bool


def stack_inputs(signature: Signature, steps: Sequence[Step], length: int) -> tuple[dict[str, Array], dict[int, str]]:
    """Stack the next `length` time steps of each step.

    Returns:
        The inputs by name, as the graph takes them; and the rows that hold NaN or infinity, with the
        name of the input that does.
    """
    feeds: dict[str, Array] = {}
    bad: dict[int, str] = {}
    for index, spec in enumerate(signature.inputs):
        size = spec.step_bytes
        pieces = [step.inputs[index] if step.count == length else _piece(step, index, size, length) for step in steps]
        rows = np.frombuffer(b"".join(pieces), spec.np_dtype).reshape(len(steps), length, *spec.dims)
        if not all_finite(rows):
            bad.update((row, spec.name) for row in rows_not_finite(rows))
        feeds[spec.name] = spec.to_graph(rows)
    return feeds, bad


def unstack_results(
    signature: Signature, batch: Batch, results: Sequence[Array]
) -> tuple[list[tuple[bytes, ...]], list[Array]]:
    """Take what the model returned apart.

    Returns:
        For each step, the bytes of each output; and the next states, each `[B, *dims]`.

    Raises:
        ValueError: An output or a state has not the shape that the signature declares.
    """
    count = len(signature.outputs)
    outputs = [_split(spec, tensor, batch) for spec, tensor in zip(signature.outputs, results[:count], strict=True)]
    states = [spec.unstack(tensor) for spec, tensor in zip(signature.states, results[count:], strict=True)]
    for spec, rows in zip(signature.states, states, strict=True):
        if rows.shape != (len(batch.steps), *spec.dims) or rows.dtype != spec.np_dtype:
            raise ValueError(
                f"state {spec.output_name!r} came as {rows.dtype}{list(rows.shape)}, "
                f"the signature says {spec.dtype}{[len(batch.steps), *spec.dims]}"
            )
    return list(zip(*outputs, strict=True)), states


def all_finite(array: Array) -> bool:
    """Whether an array surely holds neither NaN nor infinity. False may also mean very large values: look again.

    The sum of squares is not finite if any element is not, and is had in one pass without a temporary array.
    """
    return array.dtype.kind != "f" or math.isfinite(np.vdot(array, array))


def rows_not_finite(array: Array) -> list[int]:
    """Find the rows (first axis) that hold NaN or infinity; integers never do."""
    if array.dtype.kind != "f":
        return []
    rows: list[int] = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1)).tolist()
    return rows


def _piece(step: Step, index: int, step_bytes: int, length: int) -> Buffer:
    """The bytes of the piece of a chunk's input that runs next."""
    start = step.position * step_bytes
    return memoryview(step.inputs[index])[start : start + length * step_bytes]


def _split(spec: TensorSpec, tensor: Array, batch: Batch) -> list[bytes]:
    """The bytes of each step's output."""
    size, length = len(batch.steps), batch.length
    rows = spec.from_graph(tensor)
    if rows.shape != (size, length, *spec.dims) or rows.dtype != spec.np_dtype:
        raise ValueError(
            f"output {spec.name!r} came as {rows.dtype}{list(rows.shape)}, "
            f"the signature says {spec.dtype}{[size, length, *spec.dims]}"
        )
    blob, width = rows.tobytes(), length * spec.step_bytes
    return [blob[start : start + width] for start in range(0, size * width, width)]
