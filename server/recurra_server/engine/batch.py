"""A batch: steps of different sessions that run in one model call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.signature import TensorSpec
from recurra_server.engine.slots import Slots
from recurra_server.engine.steps import Buffer, Step


@dataclass(slots=True)
class Batch:
    """One model call: `feeds` for the runtime, and what is needed to commit what it returns.

    Attributes:
        steps: The B steps, each of another session.
        length: T, the number of time steps run of each.
        slots: For each step, the slot its next states go to.
        feeds: Inputs and states by name, as the graph takes them.
    """

    steps: list[Step]
    length: int
    slots: Slots
    feeds: dict[str, NDArray[Any]]


def join_inputs(spec: TensorSpec, pieces: Sequence[Buffer], length: int) -> NDArray[Any]:
    """Stack the steps' bytes to one array `[B, T, *dims]` (read-only)."""
    flat = np.frombuffer(b"".join(pieces), spec.np_dtype)
    return flat.reshape(len(pieces), length, *spec.dims)


def split_outputs(spec: TensorSpec, tensor: NDArray[Any], size: int, length: int) -> list[bytes]:
    """Take an output of the graph apart into each step's bytes.

    Raises:
        ValueError: The graph's output has not the shape that the signature declares.
    """
    rows = spec.from_graph(tensor)
    if rows.shape != (size, length, *spec.dims) or rows.dtype != spec.np_dtype:
        raise ValueError(
            f"output {spec.name!r} came as {rows.dtype}{list(rows.shape)}, "
            f"the signature says {spec.dtype}{[size, length, *spec.dims]}"
        )
    blob = rows.tobytes()
    width = length * spec.step_bytes
    return [blob[start : start + width] for start in range(0, size * width, width)]


def piece_of(step: Step, index: int, step_bytes: int, length: int) -> Buffer:
    """The bytes of the piece of a step's input that runs next."""
    if step.count == length:
        return step.inputs[index]
    start = step.position * step_bytes
    return memoryview(step.inputs[index])[start : start + length * step_bytes]


def rows_not_finite(arrays: Sequence[NDArray[Any]]) -> list[int]:
    """Find the rows (first axis) that hold NaN or infinity; integers never do."""
    bad: set[int] = set()
    for array in arrays:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            finite = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
            bad.update(np.flatnonzero(~finite).tolist())
    return sorted(bad)
