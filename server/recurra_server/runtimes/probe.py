"""Tries a model once before it is served: a signature that lies is found out here, not by a caller."""

import timeit
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.errors import one_line
from recurra_server.engine.signature import Signature, SignatureError, StateSpec, TensorSpec
from recurra_server.engine.specs import as_array
from recurra_server.runtimes.onnx import OnnxRuntime

_REPEATS = 20


def probe(runtime: OnnxRuntime, max_batch_size: int) -> None:
    """Run zeros through a model and hold what comes back against its signature.

    Args:
        runtime: The model.
        max_batch_size: Most sessions in a call, of a model that takes several.

    Raises:
        SignatureError: The model cannot be run as its signature says.
    """
    most = 1 if runtime.one_by_one else max_batch_size
    steps = 1 if runtime.fixed_steps or not runtime.signature.has_time else 2
    in_full = any(spec.optional for spec in runtime.signature.outputs)
    for sessions, count in ((1, 1), (min(2, most), steps), (most, 1)):
        _run(runtime, sessions, count, in_full=False)
        if in_full:
            _run(runtime, sessions, count, in_full=True)


def seconds_of(runtime: OnnxRuntime, sessions: int) -> float:
    """How long a call of a tried model takes for so many sessions of one step each, in seconds.

    The least of some, so that other work on the machine does not count.
    """
    signature = runtime.signature
    outputs = [np.empty(spec.graph_shape(sessions, 1), spec.np_dtype) for spec in signature.default_outputs]
    states = [np.empty(state.graph_shape(sessions), state.np_dtype) for state in signature.states]
    call = runtime.bind(_zeros(signature, sessions, 1), [*outputs, *states])
    return min(timeit.repeat(call, number=1, repeat=_REPEATS))


def _zeros(signature: Signature, batch: int, steps: int) -> list[NDArray[Any]]:
    """What goes into a call: zeros, the states' initial values, and the constants."""
    inputs = [np.zeros(spec.graph_shape(batch, steps), spec.np_dtype) for spec in signature.inputs]
    states = [np.empty(state.graph_shape(batch), state.np_dtype) for state in signature.states]
    for state, tensor in zip(signature.states, states, strict=True):
        state.rows(tensor)[...] = as_array(state.initial, state)
    constants = [spec.filled(batch) for spec in (*signature.own_constants, *signature.fixed_constants)]
    return [*inputs, *states, *constants]


def _run(runtime: OnnxRuntime, batch: int, steps: int, *, in_full: bool) -> None:
    try:
        results = runtime.run(_zeros(runtime.signature, batch, steps), in_full=in_full)
    except Exception as error:
        raise SignatureError(
            f"the model fails on zeros for {batch} sessions and {steps} steps: {one_line(error)}"
        ) from None
    check_shapes(runtime.signature, results, batch, steps, in_full=in_full)


def check_shapes(
    signature: Signature, results: Sequence[NDArray[Any]], batch: int, steps: int, *, in_full: bool = True
) -> None:
    """Hold what a call has answered against the signature; `in_full`: optional outputs too.

    Raises:
        SignatureError: An output has another shape or dtype.
    """
    specs = signature.outputs_of(in_full=in_full)
    outputs = results[: len(specs)]
    for spec, tensor in zip(specs, outputs, strict=True):
        _compare(spec, spec.name, tensor, spec.graph_shape(batch, steps))
    for state, tensor in zip(signature.states, results[len(outputs) :], strict=True):
        _compare(state, state.output_name, tensor, state.graph_shape(batch))


def _compare(spec: TensorSpec | StateSpec, name: str, tensor: NDArray[Any], shape: tuple[int, ...]) -> None:
    if tensor.shape != shape or tensor.dtype != spec.np_dtype:
        raise SignatureError(
            f"output {name!r} came as {tensor.dtype} {list(tensor.shape)}; "
            f"the signature says {spec.dtype} {list(shape)}"
        )
