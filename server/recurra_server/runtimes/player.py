"""Runs rows of steps by a plan of calls, as the server would: with states, constants and contexts."""

from collections.abc import Iterable, Mapping

import numpy as np
from recurra_verification import Array, Call, Played

from recurra_server.engine.specs import Kept
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import check_shapes


class RuntimePlayer:
    """A `Player` of a model.

    Args:
        runtime: The model.
        seed: Of a session's own constants, which are random where the signature gives no value.
        in_full: Whether optional outputs are asked for; where not, what is run is the graph without them.
    """

    def __init__(self, runtime: OnnxRuntime, seed: int, *, in_full: bool = True) -> None:
        self._runtime = runtime
        self._seed = seed
        self._in_full = in_full
        self._outputs = runtime.signature.outputs_of(in_full=in_full)

    def play(self, inputs: Mapping[str, Array], calls: Iterable[Call]) -> Played:
        """See `recurra_verification.Player`."""
        signature = self._runtime.signature
        rows, steps = next(iter(inputs.values())).shape[:2]
        kept = {kept.name: self._begin(kept, rows) for kept in signature.kept}
        outputs = {spec.name: np.full((rows, steps, *spec.dims), np.nan) for spec in self._outputs}
        for constant in signature.own_constants:
            if constant.batch_axis is None:  # only sessions of equal values share a call
                kept[constant.name][:] = kept[constant.name][0]
        at = np.zeros(rows, np.int64)
        for call in calls:
            cut = {
                name: np.stack([x[row, at[row] : at[row] + call.steps] for row in call.rows])
                for name, x in inputs.items()
            }
            answers = self._run(cut, kept, call)
            for spec, answer in zip(self._outputs, answers, strict=True):
                for index, row in enumerate(call.rows):
                    outputs[spec.name][row, at[row] : at[row] + call.steps] = answer[index]
            at[call.rows] += call.steps
        return Played(outputs, {state.output_name: kept[state.input_name] for state in signature.states})

    def _begin(self, kept: Kept, rows: int) -> Array:
        """What is kept of each row before its first step, `[R, *dims]`; the same in every play."""
        tensor = np.empty((rows, *kept.dims), kept.np_dtype)
        tensor[...] = 0 if kept.initial is None else kept.initial
        if kept.initial is None and kept.np_dtype.kind == "f":
            tensor[...] = np.random.default_rng(self._seed).standard_normal(tensor.shape)
        return tensor

    def _run(self, inputs: Mapping[str, Array], kept: Mapping[str, Array], call: Call) -> list[Array]:
        """One call: its outputs `[B, T, *dims]`; what is kept of its rows goes on."""
        signature, rows, batch = self._runtime.signature, call.rows, len(call.rows)
        tensors = []
        for spec in signature.inputs:
            graph = np.empty(spec.graph_shape(batch, call.steps), spec.np_dtype)
            spec.rows(graph)[...] = inputs[spec.name]
            if spec.context:
                before, after = spec.context_rows(graph)
                before[...] = kept[f"{spec.name}.context"][rows]
                kept[f"{spec.name}.context"][rows] = after
            tensors.append(graph)
        for state in signature.states:
            graph = np.empty(state.graph_shape(batch), state.np_dtype)
            state.rows(graph)[...] = kept[state.input_name][rows]
            tensors.append(graph)
        for constant in signature.own_constants:
            graph = np.empty(constant.graph_shape(batch), constant.np_dtype)
            constant.rows(graph, batch)[...] = kept[constant.name][rows]
            tensors.append(graph)
        tensors += [constant.filled(batch) for constant in signature.fixed_constants]
        results = self._runtime.run(tensors, in_full=self._in_full)
        check_shapes(signature, results, batch, call.steps, in_full=self._in_full)
        outputs, states = results[: len(self._outputs)], results[len(self._outputs) :]
        for state, tensor in zip(signature.states, states, strict=True):
            kept[state.input_name][rows] = state.rows(tensor)
        return [spec.rows(tensor) for spec, tensor in zip(self._outputs, outputs, strict=True)]
