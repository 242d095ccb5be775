"""Runs a model with ONNX Runtime."""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from recurra_server.engine.signature import ConstantSpec, Signature, SignatureError, StateSpec, TensorSpec
from recurra_server.runtimes.metadata import read_description, read_metrics, read_signature
from recurra_server.runtimes.operators import register
from recurra_server.runtimes.prune import without

TYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def open_session(
    path: Path, *, threads: int = 1, graph: bytes | None = None, operators: Sequence[Path] = ()
) -> ort.InferenceSession:
    """Load a file; or a graph that was made of it, whose weights may still lie beside it.

    It may use the operators of ONNX, of ONNX Runtime and of these libraries.

    Raises:
        Exception: ONNX Runtime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what a call fails on is told to the caller, not printed
    # Threads that spin between calls would take the event loop's core.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    register(operators, options)
    if graph is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    # There is nothing to fall back to, and it would be announced on stdout.
    return ort.InferenceSession(graph or str(path), options, providers=["CPUExecutionProvider"], enable_fallback=False)


class OnnxRuntime:
    """One ONNX model in ONNX Runtime; `description` stands for the model.yaml beside it.

    It may use the operators of the libraries `operators`, beside those that ONNX Runtime has.

    Attributes:
        signature: What the file says it takes, answers and remembers.
        metrics: Figures from training that the file carries.
        threads: How many run a call of at least `threads_from` sessions; one runs a smaller call.
        fixed_batch, fixed_steps: Whether the graph only takes a batch of one, or one time step a call.

    Raises:
        SignatureError: The signature is missing, or does not fit the graph.
        Exception: ONNX Runtime cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        description: Mapping[str, Any] | None = None,
        operators: Sequence[Path] = (),
    ) -> None:
        described = read_description(path) if description is None else description
        self.threads = threads
        self.threads_from = 1
        session = open_session(path, threads=threads, operators=operators)
        metadata = session.get_modelmeta().custom_metadata_map
        self.signature = read_signature(metadata, described)
        self.metrics = read_metrics(metadata)
        self.fixed_batch, self.fixed_steps = _check_graph(self.signature, session)
        self._rows = (self.signature.inputs[0] if self.signature.inputs else self.signature.states[0]).rows
        self._input_names = [
            *(spec.name for spec in self.signature.inputs),
            *(state.input_name for state in self.signature.states),
            *(spec.name for spec in (*self.signature.own_constants, *self.signature.fixed_constants)),
        ]
        optional = [spec.name for spec in self.signature.outputs if spec.optional]
        cut = session
        if optional:
            cut = open_session(path, threads=threads, graph=without(path, optional), operators=operators)
        self._sessions = self._threaded = {True: session, False: cut}  # by whether optional outputs are computed

    def with_threads(self, other: "OnnxRuntime", sessions: int) -> "OnnxRuntime":
        """The same model, whose calls of at least so many sessions are those of `other`, with its threads."""
        both = copy(self)
        both._threaded, both.threads, both.threads_from = other._threaded, other.threads, sessions
        return both

    @property
    def one_by_one(self) -> bool:
        """Whether sessions must not share a call."""
        return self.fixed_batch or self.signature.one_by_one

    def bind(
        self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]], *, in_full: bool = False
    ) -> Callable[[], None]:
        """Make a call between arrays; see `Runtime.bind`.

        Nothing is copied or allocated when it is made, which takes a third off the time of a small model.
        """
        sessions = self._sessions if len(self._rows(inputs[0])) < self.threads_from else self._threaded
        session = sessions[in_full]
        binding = session.io_binding()
        # Each value keeps its array alive, and the binding its values.
        for name, array in zip(self._input_names, inputs, strict=True):
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array))
        for name, array in zip(self._output_names(in_full=in_full), outputs, strict=True):
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))
        return partial(session.run_with_iobinding, binding)

    def run(self, inputs: Sequence[NDArray[Any]], *, in_full: bool = True) -> Sequence[NDArray[Any]]:
        """Run the model once on the inputs that `bind` takes; return what it answers, of whatever shape."""
        results: Sequence[NDArray[Any]] = self._sessions[in_full].run(
            self._output_names(in_full=in_full), dict(zip(self._input_names, inputs, strict=True))
        )
        return results

    def _output_names(self, *, in_full: bool) -> list[str]:
        return [
            *(spec.name for spec in self.signature.outputs_of(in_full=in_full)),
            *(state.output_name for state in self.signature.states),
        ]


def _check_graph(signature: Signature, session: ort.InferenceSession) -> tuple[bool, bool]:
    """Hold the signature against the graph.

    The shapes of outputs are not compared: exporters get them wrong, and the probe sees the real ones.

    Returns:
        Whether the graph's batch is fixed at 1, and whether its time is.

    Raises:
        SignatureError: A tensor is missing, undeclared, or of another type or shape.
    """
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = {node.name: node for node in session.get_outputs()}
    states, constants = signature.states, signature.constants
    fixed: set[str] = set()
    taken: list[tuple[str, TensorSpec | StateSpec | ConstantSpec]] = [
        *((spec.name, spec) for spec in signature.inputs),
        *((state.input_name, state) for state in states),
        *((spec.name, spec) for spec in constants),
    ]
    for name, spec in taken:
        fixed |= _compare_shape(_node(inputs, name, spec.dtype, "input"), spec)
    for name, dtype in [(s.name, s.dtype) for s in signature.outputs] + [(s.output_name, s.dtype) for s in states]:
        _node(outputs, name, dtype, "output")
    if inputs:
        raise SignatureError(
            f"the graph has inputs that the signature does not name: {', '.join(inputs)}; "
            "add each to inputs, states or constants"
        )
    return "B" in fixed, "T" in fixed


def _node(nodes: dict[str, Any], name: str, dtype: str, what: str) -> Any:
    """Take a tensor out of the graph's."""
    node = nodes.pop(name, None)
    if node is None:
        raise SignatureError(f"the graph has no {what} {name!r} (left over: {', '.join(nodes) or 'none'})")
    if TYPES.get(node.type) != dtype:
        raise SignatureError(f"{what} {name!r} is {dtype} in the signature and {node.type} in the graph")
    return node


def _compare_shape(node: Any, spec: TensorSpec | StateSpec | ConstantSpec) -> set[str]:
    """Hold a tensor's shape against the graph's, as far as that is fixed; tell which free axes are fixed at 1."""
    if not node.shape:
        return set()
    one, two = spec.graph_shape(1, 1), (spec.graph_shape(2, 1), spec.graph_shape(1, 2))
    expected = ["B" if b != o else "T" if t != o else o for o, b, t in zip(one, *two, strict=True)]
    if len(node.shape) != len(one) or any(
        isinstance(have, int) and have != want for have, want in zip(node.shape, one, strict=True)
    ):
        raise SignatureError(f"input {node.name!r} has shape {node.shape} in the graph; the signature says {expected}")
    return {str(axis) for have, axis in zip(node.shape, expected, strict=True) if isinstance(have, int)} & {"B", "T"}
