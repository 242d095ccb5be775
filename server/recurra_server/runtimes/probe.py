"""Tries a model once before it is served: a signature that lies is found out here, not by a caller."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.ports import Runtime
from recurra_server.engine.signature import Signature, SignatureError, StateSpec, TensorSpec

_REPEATS = 5


def probe(signature: Signature, runtime: Runtime, max_batch_size: int) -> float:
    """Run zeros through a model and hold what comes back against its signature.

    Returns:
        Seconds that a call with `max_batch_size` sessions of one step each takes: the median of some.

    Raises:
        SignatureError: The model cannot be run as its signature says.
    """
    steps = 2 if signature.has_time else 1
    _run(signature, runtime, 1, 1)
    _run(signature, runtime, min(2, max_batch_size), steps)
    return float(np.median([_run(signature, runtime, max_batch_size, 1) for _ in range(_REPEATS)]))


def _run(signature: Signature, runtime: Runtime, batch: int, steps: int) -> float:
    feeds = {spec.name: spec.to_graph(np.zeros((batch, steps, *spec.dims), spec.np_dtype)) for spec in signature.inputs}
    for state in signature.states:
        feeds[state.input_name] = np.full(_state_shape(state, batch), state.initial, state.np_dtype)
    started = time.perf_counter()
    try:
        results = runtime.run(feeds)
    except Exception as error:
        detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SignatureError(f"the model fails on zeros for {batch} sessions and {steps} steps: {detail}") from None
    seconds = time.perf_counter() - started
    _check(signature, results, batch, steps)
    return seconds


def _check(signature: Signature, results: Sequence[NDArray[Any]], batch: int, steps: int) -> None:
    outputs = results[: len(signature.outputs)]
    for spec, tensor in zip(signature.outputs, outputs, strict=True):
        expected = spec.to_graph(np.zeros((batch, steps, *spec.dims), spec.np_dtype))
        _compare(spec, spec.name, tensor, expected.shape)
    for state, tensor in zip(signature.states, results[len(outputs) :], strict=True):
        _compare(state, state.output_name, tensor, _state_shape(state, batch))


def _compare(spec: TensorSpec | StateSpec, name: str, tensor: NDArray[Any], shape: tuple[int, ...]) -> None:
    if tensor.shape != shape or tensor.dtype != spec.np_dtype:
        raise SignatureError(
            f"output {name!r} came as {tensor.dtype} {list(tensor.shape)}; "
            f"the signature says {spec.dtype} {list(shape)}"
        )


def _state_shape(state: StateSpec, batch: int) -> tuple[int, ...]:
    return (*state.dims[: state.batch_axis], batch, *state.dims[state.batch_axis :])
