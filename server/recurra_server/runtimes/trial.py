"""Runs a model to see whether what is said of it is true: that its rows and its steps are independent."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.specs import as_array
from recurra_server.runtimes.onnx import OnnxRuntime

_SESSIONS: Final = 3
_STEPS: Final = 4
_TOLERANCE: Final = 1e-4
Array = NDArray[Any]


def try_out(runtime: OnnxRuntime) -> list[str]:
    """Compare rows run alone and together, and steps run one by one and at once, on random numbers.

    Returns:
        What was found to be wrong, a sentence each.

    Raises:
        Exception: The model refuses the numbers.
    """
    found = []
    signature = runtime.signature
    batched = not runtime.one_by_one
    chunked = signature.has_time and not runtime.fixed_steps
    sessions, steps = (_SESSIONS if batched else 1), (_STEPS if chunked else 1)
    rng = np.random.default_rng(0)
    rows = [_random(rng, (sessions, steps, *spec.dims), spec.np_dtype) for spec in signature.inputs]
    together = _run(runtime, rows)
    if batched:
        alone = [_run(runtime, [x[row : row + 1] for x in rows]) for row in range(sessions)]
        apart = max(_apart(whole[row : row + 1], one) for row in range(sessions)
                    for whole, one in zip(together, alone[row], strict=True))  # fmt: skip
        if apart > _TOLERANCE:
            found.append(
                f"a session's answers depend on who shares its call (by {apart:.1e}), as dynamic quantisation makes "
                "them: set `batching: off`"
            )
    if chunked:
        single = [_run(runtime, rows, cut=True)]
        apart = max(_apart(whole, one) for whole, one in zip(together, single[0], strict=True))
        if apart > _TOLERANCE:
            found.append(
                f"steps run at once are answered otherwise than one by one (by {apart:.1e}): the states are paired "
                "wrongly, one is missing, or the model looks ahead"
            )
    return found


def _run(runtime: OnnxRuntime, rows: list[Array], *, cut: bool = False) -> list[Array]:
    """The outputs `[B, T, *dims]` from the initial states on, all steps in one call or, cut, in one call each."""
    signature = runtime.signature
    batch, steps = rows[0].shape[:2]
    states = [np.empty(state.graph_shape(batch), state.np_dtype) for state in signature.states]
    for state, tensor in zip(signature.states, states, strict=True):
        state.rows(tensor)[...] = as_array(state.initial, state)
    constants = [spec.filled(batch) for spec in (*signature.own_constants, *signature.fixed_constants)]
    contexts: list[Array | None] = [None] * len(rows)
    answers: list[list[Array]] = []
    for start in range(0, steps, 1 if cut else steps):
        length = 1 if cut else steps
        inputs = []
        for index, (spec, x) in enumerate(zip(signature.inputs, rows, strict=True)):
            graph = np.zeros(spec.graph_shape(batch, length), spec.np_dtype)
            spec.rows(graph)[...] = x[:, start : start + length]
            if spec.context:
                before, after = spec.context_rows(graph)
                before[...] = 0 if contexts[index] is None else contexts[index]
                contexts[index] = after.copy()
            inputs.append(graph)
        results = [np.asarray(result) for result in runtime.run([*inputs, *states, *constants])]
        count = len(signature.outputs)
        states = results[count:]
        answers.append([spec.rows(y) for spec, y in zip(signature.outputs, results[:count], strict=True)])
    return [np.concatenate(parts, axis=1) for parts in zip(*answers, strict=True)]


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    if dtype.kind == "f":
        # Rows of different size: where a scale is taken over all of them, it shows.
        return (rng.normal(size=shape) * 10.0 ** -np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1))).astype(
            dtype
        )
    return rng.integers(0, 2, shape).astype(dtype)  # also good for the index of a class


def _apart(one: Array, two: Array) -> float:
    """The largest difference, against the largest value."""
    a, b = one.astype(np.float64), two.astype(np.float64)
    return float(np.abs(a - b).max() / max(1e-6, np.abs(a).max()))
