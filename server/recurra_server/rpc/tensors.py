"""Tensors on the wire, checked and turned into what the engine takes, and back.

Everything is checked here, before memory is spent on it: names, dtypes, shapes, lengths.
"""

from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np
from recurra.v1 import tensor_pb2

from recurra_server.engine.errors import (
    ChunkLengthError,
    InputDtypeError,
    InputNameError,
    InputNotFiniteError,
    InputShapeError,
    shown,
)
from recurra_server.engine.served_model import Array
from recurra_server.engine.signature import Dtype, Kept, Signature, TensorSpec
from recurra_server.engine.workspace import from_bytes

_MAX_AXES = 8

DTYPE_NUMBERS = {name: tensor_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}") for name in get_args(Dtype)}
_DTYPE_NAMES = {number: name for name, number in DTYPE_NUMBERS.items()}


def by_name(tensors: Iterable[tensor_pb2.Tensor], names: Sequence[str], what: str) -> dict[str, tensor_pb2.Tensor]:
    """Sort tensors by name; a nameless one is meant where there is only one name.

    Raises:
        InputNameError: A name is unknown or stands twice.
    """
    found: dict[str, tensor_pb2.Tensor] = {}
    for tensor in tensors:
        name = tensor.name or (names[0] if len(names) == 1 else "")
        if name not in names:
            raise InputNameError(
                f"the model has no {what} {shown(name)}; it has {', '.join(names) or 'none'}",
                input=name[:64],
                expected=",".join(names),
            )
        if name in found:
            raise InputNameError(f"{what} {name!r} is given twice", input=name, expected=",".join(names))
        found[name] = tensor
    return found


def decode_steps(
    tensors: Sequence[tensor_pb2.Tensor], signature: Signature, max_steps: int
) -> tuple[tuple[bytes, ...], int, bool]:
    """Read one session's inputs.

    Returns:
        The bytes of each input in the signature's order, the number of steps, and whether they
        came as a chunk `[T, *dims]` (else as one step `[*dims]`).

    Raises:
        InputNameError, InputDtypeError, InputShapeError, ChunkLengthError: They are not what the model takes.
    """
    specs = signature.inputs
    if len(specs) == 1 and len(tensors) == 1:
        tensor, spec = tensors[0], specs[0]
        data = tensor.data
        if len(data) == spec.step_bytes and not tensor.name and not tensor.dtype:
            shape, dims = tensor.shape, spec.dims_list
            if not shape or (len(shape) == len(dims) and shape == dims):  # to compare them copies them
                return (data,), 1, False  # nearly every message: one step
        if tensor.name and tensor.name != spec.name:
            by_name(tensors, [spec.name], "input")
        count, is_chunk = _count_steps(tensor, spec, 0, max_steps)
        return (data,), count, is_chunk
    found = by_name(tensors, [spec.name for spec in specs], "input")
    data_of: list[bytes] = []
    counts: dict[str, int] = {}
    chunked = False
    for spec in specs:
        if spec.name not in found:
            raise InputNameError(
                f"input {spec.name!r} is missing", input=spec.name, expected=",".join(spec.name for spec in specs)
            )
        tensor = found[spec.name]
        counts[spec.name], is_chunk = _count_steps(tensor, spec, 0, max_steps)
        chunked = chunked or is_chunk
        data_of.append(tensor.data)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise InputShapeError(f"all inputs must have the same number of steps, not {listed}", shape=listed)
    return tuple(data_of), next(iter(counts.values())), chunked


def decode_table(
    tensors: Sequence[tensor_pb2.Tensor], signature: Signature, rows: int, max_steps: int
) -> tuple[tuple[bytes, ...], int, bool]:
    """Read the inputs of many sessions, `[B, *dims]` or `[B, T, *dims]`.

    Returns:
        The bytes of each input in the signature's order, row after row; the number of steps of every row; and
        whether they came as chunks.

    Raises:
        InputNameError, InputDtypeError, InputShapeError, ChunkLengthError: They are not what the model takes.
    """
    names = [spec.name for spec in signature.inputs]
    found = by_name(tensors, names, "input")
    table: list[bytes] = []
    counts: set[tuple[int, bool]] = set()
    for spec in signature.inputs:
        if spec.name not in found:
            raise InputNameError(f"input {spec.name!r} is missing", input=spec.name, expected=",".join(names))
        tensor = found[spec.name]
        counts.add(_count_steps(tensor, spec, rows, max_steps))
        table.append(tensor.data)
    if len(counts) > 1:
        raise InputShapeError("all inputs must have the same number of steps")
    count, is_chunk = counts.pop()
    return tuple(table), count, is_chunk


def split_rows(data: bytes, rows: int) -> list[memoryview]:
    """The bytes of each row of a table."""
    width = len(data) // rows
    view = memoryview(data)
    return [view[start : start + width] for start in range(0, len(data), width)]


def decode_states(tensors: Sequence[tensor_pb2.Tensor], states: Sequence[Kept]) -> dict[str, Array]:
    """Read initial states and constants of a session, each `[*dims]`.

    Raises:
        InputNameError, InputDtypeError, InputShapeError, InputNotFiniteError: They are not what the model remembers.
    """
    found = by_name(tensors, [state.name for state in states], "state")
    arrays: dict[str, Array] = {}
    for state in states:
        tensor = found.get(state.name)
        if tensor is None:
            continue
        _check_dtype(tensor, state.name, state.dtype)
        shape = tuple(tensor.shape[: len(state.dims) + 1]) or state.dims
        if shape != state.dims or len(tensor.data) != state.row_bytes:
            raise _shape_error(tensor, state.name, f"{list(state.dims)} with {state.row_bytes} bytes")
        array = from_bytes(tensor.data, state.np_dtype).reshape(state.dims)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputNotFiniteError(f"state {state.name!r} holds NaN or infinity", input=state.name)
        arrays[state.name] = array
    return arrays


def fill_tensors(
    tensors: Sequence[tensor_pb2.Tensor], specs: Sequence[TensorSpec], data: Sequence[bytes], lead: Sequence[int]
) -> None:
    """Write outputs into prepared messages: `lead` are the axes before each spec's dims."""
    for tensor, spec, blob in zip(tensors, specs, data, strict=True):
        tensor.name = spec.name
        tensor.dtype = DTYPE_NUMBERS[spec.dtype]
        tensor.shape[:] = [*lead, *spec.dims]
        tensor.data = blob


def encode(specs: Sequence[TensorSpec], data: Sequence[bytes], lead: Sequence[int]) -> list[tensor_pb2.Tensor]:
    """Make tensors of outputs: `lead` are the axes before each spec's dims."""
    tensors = [tensor_pb2.Tensor() for _ in specs]
    fill_tensors(tensors, specs, data, lead)
    return tensors


def _count_steps(tensor: tensor_pb2.Tensor, spec: TensorSpec, rows: int, max_steps: int) -> tuple[int, bool]:
    """The number of steps of a tensor, with `rows` > 0 of each of its rows, and whether it has a time axis."""
    _check_dtype(tensor, spec.name, spec.dtype)
    lead = (rows,) if rows else ()
    shape = tuple(tensor.shape[: _MAX_AXES + 1])
    size = len(tensor.data)
    row_steps = max(rows, 1) * spec.step_bytes
    if len(shape) > _MAX_AXES or any(axis < 0 for axis in shape):
        raise _shape_error(tensor, spec.name, f"at most {_MAX_AXES} axes, none negative")
    if not shape and (spec.dims or rows or size != spec.step_bytes):
        count, rest = divmod(size, row_steps)
        if rest or (rows and count != 1) or not count:
            raise _shape_error(tensor, spec.name, f"{row_steps} bytes a step, for shape {[*lead, *spec.dims]}")
        is_chunk = count > 1
    elif shape == (*lead, *spec.dims):
        count, is_chunk = 1, False
    elif len(shape) == len(lead) + 1 + len(spec.dims) and shape == (*lead, shape[len(lead)], *spec.dims):
        count, is_chunk = shape[len(lead)], True
    else:
        wanted = [*lead, *spec.dims]
        chunk = [*lead, "T", *spec.dims]
        raise _shape_error(tensor, spec.name, f"{wanted}, or {chunk} for T steps".replace("'", ""))
    if not 1 <= count <= max_steps:
        raise ChunkLengthError(
            f"input {spec.name!r} has {count} steps; a chunk has 1 to {max_steps}", steps=count, limit=max_steps
        )
    if size != count * row_steps:
        raise _shape_error(tensor, spec.name, f"{count * row_steps} bytes for shape {list(shape)}")
    return count, is_chunk


def _check_dtype(tensor: tensor_pb2.Tensor, name: str, expected: str) -> None:
    if tensor.dtype and tensor.dtype != DTYPE_NUMBERS[expected]:
        given = _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
        raise InputDtypeError(
            f"{name!r} is of type {given}; the model takes {expected}: convert it before sending",
            input=name,
            dtype=given,
            expected=expected,
        )


def _shape_error(tensor: tensor_pb2.Tensor, name: str, expected: str) -> InputShapeError:
    shape = str(list(tensor.shape[:_MAX_AXES])) if tensor.shape else "unset"
    return InputShapeError(
        f"{name!r} has shape {shape} and {len(tensor.data)} bytes; expected {expected}",
        input=name,
        shape=shape,
        expected=expected,
    )
