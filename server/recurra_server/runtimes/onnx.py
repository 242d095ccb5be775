"""Runs a model with ONNX Runtime."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from recurra_server.engine.signature import Signature, SignatureError, StateSpec, TensorSpec
from recurra_server.runtimes.metadata import read_metrics, read_signature

_TYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class OnnxRuntime:
    """One ONNX model in ONNX Runtime.

    Attributes:
        signature: What the file says it takes, answers and remembers.
        metrics: Figures from training that the file carries.
        fixed_batch: Whether the graph only takes a batch of one.

    Raises:
        SignatureError: The signature is missing, or does not fit the graph.
        Exception: ONNX Runtime cannot load the file.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what a call fails on is told to the caller, not printed
        # Threads that spin between calls would take the event loop's core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.signature = read_signature(metadata)
        self.metrics = read_metrics(metadata)
        self.fixed_batch = _check_graph(self.signature, self._session)
        self._input_names = [
            *(spec.name for spec in self.signature.inputs),
            *(state.input_name for state in self.signature.states),
        ]
        self._output_names = [
            *(spec.name for spec in self.signature.outputs),
            *(state.output_name for state in self.signature.states),
        ]

    def bind(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> Callable[[], None]:
        """Make a call between arrays; see `Runtime.bind`.

        Nothing is copied or allocated when it is made, which takes a third off the time of a small model.
        """
        binding = self._session.io_binding()
        # Each value keeps its array alive, and the binding its values.
        for name, array in zip(self._input_names, inputs, strict=True):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in zip(self._output_names, outputs, strict=True):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return partial(self._session.run_with_iobinding, binding)

    def run(self, inputs: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Run the model once on the inputs and states that `bind` takes; return what it answers, of whatever shape."""
        results: Sequence[NDArray[Any]] = self._session.run(
            self._output_names, dict(zip(self._input_names, inputs, strict=True))
        )
        return results


def _check_graph(signature: Signature, session: ort.InferenceSession) -> bool:
    """Hold the signature against the graph.

    Returns:
        Whether the graph's batch is fixed at 1.

    Raises:
        SignatureError: A tensor is missing, undeclared, or of another type or shape.
    """
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    states = signature.states
    fixed = [
        _check_node(inputs, spec, name, "input")
        for name, spec in [(s.name, s) for s in signature.inputs] + [(s.input_name, s) for s in states]
    ]
    for name, spec in [(s.name, s) for s in signature.outputs] + [(s.output_name, s) for s in states]:
        _check_node(outputs, spec, name, "output")
    if inputs:
        raise SignatureError(f"the graph has inputs that the signature does not name: {', '.join(inputs)}")
    return any(fixed)


def _check_node(nodes: dict[str, Any], spec: TensorSpec | StateSpec, name: str, what: str) -> bool:
    node = nodes.pop(name, None)
    if node is None:
        raise SignatureError(f"the graph has no {what} {name!r} (left over: {', '.join(nodes) or 'none'})")
    if _TYPES.get(node.type) != spec.dtype:
        raise SignatureError(f"{what} {name!r} is {spec.dtype} in the signature and {node.type} in the graph")
    if not node.shape:
        return False
    axes: dict[int, str] = {spec.batch_axis: "B"}
    if isinstance(spec, TensorSpec) and spec.time_axis is not None:
        axes[spec.time_axis] = "T"
    dims = iter(spec.dims)
    expected = [axes[axis] if axis in axes else next(dims) for axis in range(len(axes) + len(spec.dims))]
    fits = len(node.shape) == len(expected) and all(
        not isinstance(have, int) or have == want or (isinstance(want, str) and have == 1)
        for have, want in zip(node.shape, expected, strict=True)
    )
    if not fits:
        raise SignatureError(f"{what} {name!r} has shape {node.shape} in the graph; the signature says {expected}")
    return bool(node.shape[spec.batch_axis] == 1)
