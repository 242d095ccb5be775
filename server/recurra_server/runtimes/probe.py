"""Tries a model once before it is served: a signature that lies is found out here, not by a caller.

As a process of its own (`python -m recurra_server.runtimes.probe <model.onnx> <sessions>`) it also finds out one that
crashes or does not come to an end.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.signature import Signature, SignatureError, StateSpec, TensorSpec
from recurra_server.engine.specs import as_array
from recurra_server.runtimes.onnx import OnnxRuntime

_REPEATS = 9


class Pace(NamedTuple):
    """How long a call takes that runs one step: the least of some, so that other work on the machine does not count.

    Attributes:
        alone: Seconds with one session.
        full: Seconds with as many sessions as share a call.
    """

    alone: float
    full: float


def probe(runtime: OnnxRuntime, max_batch_size: int) -> Pace:
    """Run zeros through a model and hold what comes back against its signature.

    Args:
        runtime: The model.
        max_batch_size: Most sessions in a call, of a model that takes several.

    Raises:
        SignatureError: The model cannot be run as its signature says.
    """
    most = 1 if runtime.one_by_one else max_batch_size
    steps = 1 if runtime.fixed_steps or not runtime.signature.has_time else 2
    _run(runtime, min(2, most), steps)
    return Pace(*(min(_run(runtime, size, 1) for _ in range(_REPEATS)) for size in (1, most)))


def _run(runtime: OnnxRuntime, batch: int, steps: int) -> float:
    signature = runtime.signature
    inputs = [np.zeros(spec.graph_shape(batch, steps), spec.np_dtype) for spec in signature.inputs]
    states = [np.empty(state.graph_shape(batch), state.np_dtype) for state in signature.states]
    for state, tensor in zip(signature.states, states, strict=True):
        state.rows(tensor)[...] = as_array(state.initial, state)
    constants = [spec.filled(batch) for spec in (*signature.own_constants, *signature.fixed_constants)]
    started = time.perf_counter()
    try:
        results = runtime.run([*inputs, *states, *constants])
    except Exception as error:
        detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise SignatureError(f"the model fails on zeros for {batch} sessions and {steps} steps: {detail}") from None
    seconds = time.perf_counter() - started
    _check(signature, results, batch, steps)
    return seconds


def _check(signature: Signature, results: Sequence[NDArray[Any]], batch: int, steps: int) -> None:
    outputs = results[: len(signature.outputs)]
    for spec, tensor in zip(signature.outputs, outputs, strict=True):
        _compare(spec, spec.name, tensor, spec.graph_shape(batch, steps))
    for state, tensor in zip(signature.states, results[len(outputs) :], strict=True):
        _compare(state, state.output_name, tensor, state.graph_shape(batch))


def _compare(spec: TensorSpec | StateSpec, name: str, tensor: NDArray[Any], shape: tuple[int, ...]) -> None:
    if tensor.shape != shape or tensor.dtype != spec.np_dtype:
        raise SignatureError(
            f"output {name!r} came as {tensor.dtype} {list(tensor.shape)}; "
            f"the signature says {spec.dtype} {list(shape)}"
        )


def main(path: str, sessions: str) -> None:
    """Try a model; what is wrong with it goes to stderr, as one line."""
    try:
        runtime = OnnxRuntime(Path(path))
        probe(runtime, int(sessions))
    except Exception as error:
        sys.exit((str(error).splitlines() or [type(error).__name__])[0][:500])


if __name__ == "__main__":
    main(*sys.argv[1:])
