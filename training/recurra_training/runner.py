"""Runs an exported model with nothing but what its file says, as a server would."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from recurra_verification import Array, Call, Played

from recurra_training.errors import VerificationError
from recurra_training.signature import Signature, TensorSpec

_ERRORS_ONLY: Final = 3


class ModelRunner:
    """An ONNX Runtime session with the axes of a signature; one thread, so that results can be repeated."""

    def __init__(self, path: Path, signature: Signature) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _ERRORS_ONLY
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._signature = signature
        self._names = list(signature.output_shapes())

    def play(self, inputs: Mapping[str, Array], calls: Iterable[Call]) -> Played:
        """See `recurra_verification.Player`; steps that no call covers are left NaN.

        Raises:
            VerificationError: A call fails, or answers in a shape that the signature does not allow.
        """
        rows, steps = next(iter(inputs.values())).shape[:2]
        at = np.zeros(rows, np.int64)
        states = {
            spec.output_name: np.full((rows, *spec.dims), spec.initial, spec.dtype) for spec in self._signature.states
        }
        outputs = {spec.name: np.full((rows, steps, *spec.dims), np.nan) for spec in self._signature.outputs}
        for call in calls:
            # Row by row, because rows stand at different steps.
            cut = {
                name: np.stack([x[row, at[row] : at[row] + call.steps] for row in call.rows])
                for name, x in inputs.items()
            }
            answers = self._run(cut, {name: state[call.rows] for name, state in states.items()}, call)
            for spec in self._signature.outputs:
                for index, row in enumerate(call.rows):
                    outputs[spec.name][row, at[row] : at[row] + call.steps] = answers[spec.name][index]
            for name, state in states.items():
                state[call.rows] = answers[name]
            at[call.rows] += call.steps
        return Played(outputs, states)

    def _run(self, inputs: Mapping[str, Array], states: Mapping[str, Array], call: Call) -> dict[str, Array]:
        signature = self._signature
        feed = {spec.name: _to_graph(spec, inputs[spec.name]) for spec in signature.inputs}
        feed |= {
            spec.input_name: np.moveaxis(states[spec.output_name], 0, spec.batch_axis) for spec in signature.states
        }
        what = f"a call with {len(call.rows)} rows of {call.steps} steps"
        try:
            values = self._session.run(self._names, {name: np.ascontiguousarray(value) for name, value in feed.items()})
        except Exception as error:  # ONNX Runtime raises exceptions of no common base
            raise VerificationError(f"{what} fails: {str(error).strip().splitlines()[0]}") from error
        answers = dict(zip(self._names, values, strict=True))
        sizes: dict[str | int, int] = {"batch": len(call.rows), "time": call.steps}
        for name, shape in signature.output_shapes().items():
            expected = tuple(sizes.get(size, size) for size in shape)
            if answers[name].shape != expected:
                raise VerificationError(f"{what} answers {name} as {list(answers[name].shape)}, not {list(expected)}")
        return {spec.name: _from_graph(spec, answers[spec.name]) for spec in signature.outputs} | {
            spec.output_name: np.moveaxis(answers[spec.output_name], spec.batch_axis, 0) for spec in signature.states
        }


def _to_graph(spec: TensorSpec, rows: Array) -> Array:
    if spec.time_axis is None:
        return np.moveaxis(rows[:, 0], 0, spec.batch_axis)
    return np.moveaxis(rows, (0, 1), (spec.batch_axis, spec.time_axis))


def _from_graph(spec: TensorSpec, tensor: Array) -> Array:
    if spec.time_axis is None:
        return np.moveaxis(tensor, spec.batch_axis, 0)[:, np.newaxis]
    return np.moveaxis(tensor, (spec.batch_axis, spec.time_axis), (0, 1))
