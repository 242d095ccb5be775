"""Export: one lean graph in one file, which says itself how to run it, and does what the network does."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from recurra_server.runtimes.metadata import read_metrics, read_signature
from recurra_training.build import build as build_network
from recurra_training.cells import Cell
from recurra_training.describe import describe
from recurra_training.errors import ExportError
from recurra_training.export import export_onnx, graph_digest
from recurra_training.models import FeedForward, Network, NetworkConfig
from recurra_training.signature import Feedback, Signature, TensorSpec
from recurra_training.verify import verify
from torch import Tensor, nn

OPERATORS = {"ffnn": "Relu", "rnn": "RNN", "rnn-relu": "RNN", "gru": "GRU", "lstm": "LSTM"}
STATES = {"ffnn": "", "rnn": "h", "rnn-relu": "h", "gru": "h", "lstm": "hc"}
CELLS: list[Cell] = ["ffnn", "rnn", "rnn-relu", "gru", "lstm"]

Exported = tuple[Cell, int, Network, Path]
"""Cell, layers, the network, the file."""


def build(cell: Cell = "lstm", layers: int = 1) -> Network:
    torch.manual_seed(0)
    options = NetworkConfig(cell, inputs=3, outputs=2, hidden=5, layers=layers, dropout=0.5, input_noise=0.5)
    network = build_network(options)
    network.fit_scales(10 * torch.randn(100, 3) + 5, None)
    return network


@pytest.fixture(scope="module", params=CELLS)
def cell(request: pytest.FixtureRequest) -> Cell:
    found: Cell = request.param
    return found


@pytest.fixture(scope="module", params=[1, 2])
def exported(cell: Cell, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    layers = request.param
    network = build(cell, layers)
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    x = TensorSpec("x", "float32", (3,), labels=("a", "b", "c"), units=("g",))
    y = TensorSpec("y", "float32", (2,), labels=("no", "yes"), kind="probability")
    signature = describe(network, x, y, description="Says yes or no.", step_seconds=0.5)
    export_onnx(network, path, signature, {"metrics": {"test_accuracy": 0.5}, "seed": 7})
    return cell, layers, network, path


def shapes(values: Any) -> dict[str, list[str | int]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


def test_every_cell_and_depth_is_proven_to_do_what_the_network_does(exported: Exported) -> None:
    _, _, network, path = exported
    checks = verify(path, network)
    assert checks[-1].name == "in PyTorch"


def test_the_graph_is_lean(exported: Exported) -> None:
    cell, layers, _, path = exported
    graph = onnx.load(path).graph
    counted = Counter(node.op_type for node in graph.node)
    assert counted[OPERATORS[cell]] == layers, "one operator for each layer"
    allowed = {"Sub", "Mul", "MatMul", "Add", "Softmax", OPERATORS[cell]}
    if cell != "ffnn":
        allowed |= {"Transpose", "Squeeze"}
    if layers > 1:
        allowed |= {"Split", "Concat"}
    assert set(counted) <= allowed
    assert counted.total() <= (9 if layers == 1 else 15)
    # Names of the exporter's would differ from one export to the next, and with them the digest.
    assert {node.name.rsplit("_", 1)[0] for node in graph.node} == {operator.lower() for operator in counted}


def test_batch_and_time_are_free(exported: Exported) -> None:
    cell, layers, _, path = exported
    graph = onnx.load(path).graph
    state = [layers, "batch", 5]
    assert shapes(graph.input) == {"x": ["batch", "time", 3]} | {f"{name}_in": state for name in STATES[cell]}
    assert shapes(graph.output) == {"y": ["batch", "time", 2]} | {f"{name}_out": state for name in STATES[cell]}


def test_onnx_runtime_has_nothing_to_say(exported: Exported, capfd: pytest.CaptureFixture[str]) -> None:
    *_, network, path = exported
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for batch, steps in ((1, 1), (4, 1), (2, 9)):
        feed = [torch.randn(batch, steps, 3), *network.initial_states(batch)]
        names = [value.name for value in session.get_inputs()]
        y, *_ = session.run(None, {name: value.numpy() for name, value in zip(names, feed, strict=True)})
        assert y.shape == (batch, steps, 2)
        np.testing.assert_allclose(y.sum(-1), 1, atol=1e-6, err_msg="probabilities")
    assert capfd.readouterr() == ("", "")


def test_export_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_onnx(build("rnn"), tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_the_file_says_what_the_format_asks(exported: Exported) -> None:
    cell, layers, _, path = exported
    model = onnx.load(path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    axes = {"batch_axis": 0, "time_axis": 1}
    x = {"name": "x", "dtype": "float32", "dims": [3], "labels": ["a", "b", "c"], "units": ["g"]}
    y = {"name": "y", "dtype": "float32", "dims": [2], "labels": ["no", "yes"], "kind": "probability"}
    state = {"dtype": "float32", "dims": [layers, 5], "batch_axis": 1, "initial": 0.0}
    assert json.loads(metadata["recurra.signature"]) == {
        "format": 1,
        "description": "Says yes or no.",
        "inputs": [x | axes],
        "outputs": [y | axes],
        "states": [{"input_name": f"{name}_in", "output_name": f"{name}_out"} | state for name in STATES[cell]],
        "step_seconds": 0.5,
    }
    training = json.loads(metadata["recurra.training"])
    assert training["metrics"] == {"test_accuracy": 0.5}
    assert training["seed"] == 7
    assert training["versions"]["torch"] == torch.__version__
    assert training["graph_digest"] == graph_digest(model)
    assert [spec.dims for spec in read_signature(metadata).states] == [(layers, 5)] * len(STATES[cell]), "on the server"
    assert read_metrics(metadata) == {"test_accuracy": 0.5}


def test_a_signature_reads_back() -> None:
    spec = TensorSpec("x", "int64", (), labels=("a", "b"))
    signature = Signature(
        (spec,), (TensorSpec("y", "float32", (2,), kind="logit"),), feedback=Feedback("y", "x", sampled=True)
    )
    assert Signature.from_json(signature.to_json()) == signature


def test_the_same_network_gives_the_same_digest_and_another_another(tmp_path: Path) -> None:
    def digest(seed: int, name: str) -> str:
        torch.manual_seed(seed)
        path = tmp_path / f"{name}.onnx"
        export_onnx(FeedForward(3, 2, hidden=4), path, training={"seed": name})
        return graph_digest(onnx.load(path))

    assert digest(0, "one") == digest(0, "two") != digest(1, "three")


def test_logits_are_left_as_they_are(tmp_path: Path) -> None:
    network = build("ffnn")
    export_onnx(network, tmp_path / "model.onnx", describe(network, kind="logit"))
    verify(tmp_path / "model.onnx", network)
    assert "Softmax" not in [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]


class RunningMean(nn.Module):
    """A network of somebody else's: y_t = (1 - a) y_(t-1) + a x_t, begun at 1/2, unrolled by hand over one chunk."""

    state_names = ("mean",)

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3))

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        """The mean, the batch on the second axis."""
        return (torch.full((4, batch), 0.5),)

    def forward(self, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """In closed form, by powers of 1 - a."""
        keep = 1 - self.rate
        steps = torch.cumsum(torch.ones_like(x), 1)
        grown = torch.cumsum(self.rate * x * keep ** (-steps), 1)
        y = keep**steps * (mean.T.unsqueeze(1) + grown)
        return y, y[:, -1].T


def test_anything_with_states_in_and_out_can_be_exported(tmp_path: Path) -> None:
    network = RunningMean()
    spec = TensorSpec("x", "float32", (4,))
    signature = describe(network, spec, TensorSpec("y", "float32", (4,), kind="value"), feedback=Feedback("y", "x"))
    (state,) = signature.states
    assert (state.input_name, state.dims, state.batch_axis, state.initial) == ("mean_in", (4,), 1, 0.5)
    export_onnx(network, tmp_path / "model.onnx", signature)
    verify(tmp_path / "model.onnx", network)


class Letters(nn.Module):
    """Reads class indices, answers logits over the next."""

    state_names = ("h",)

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.recurrence = nn.RNN(4, 6, batch_first=True, bias=False)
        self.head = nn.Linear(6, 5)

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        """Zeros."""
        return (torch.zeros(1, batch, 6),)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """`x` is `[B, T]`."""
        y, h = self.recurrence(self.table(x), h)
        return self.head(y), h


def test_class_indices_can_be_an_input(tmp_path: Path) -> None:
    network = Letters()
    letters = TensorSpec("letter", "int64", (), labels=tuple("abcde"))
    logits = TensorSpec("next", "float32", (5,), labels=tuple("abcde"), kind="logit")
    feedback = Feedback("next", "letter", sampled=True)
    export_onnx(network, tmp_path / "model.onnx", describe(network, letters, logits, feedback=feedback))
    verify(tmp_path / "model.onnx", network)


def test_a_bidirectional_network_cannot_be_exported(tmp_path: Path) -> None:
    network = build("gru")
    network.recurrence = nn.GRU(3, 5, batch_first=True, bidirectional=True)
    network.head = nn.Linear(10, 2)
    network.initial_states = lambda batch: (torch.zeros(2, batch, 5),)  # type: ignore[method-assign]
    with pytest.raises(ExportError, match="reads the future"):
        export_onnx(network, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_what_pytorch_cannot_trace_is_said_in_one_line(tmp_path: Path) -> None:
    class Branching(RunningMean):
        def forward(self, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
            return (x, mean) if x.sum() > 0 else (-x, mean)

    spec = TensorSpec("x", "float32", (4,))
    network = Branching()
    with pytest.raises(ExportError, match=r"^PyTorch cannot export the network: [^\n]+$"):
        export_onnx(network, tmp_path / "model.onnx", describe(network, spec, spec))


@pytest.mark.parametrize(
    ("states", "message"),
    [
        (lambda batch: (torch.zeros(4),), "one axis of size batch"),
        (lambda batch: (torch.eye(4)[:batch],), "one value in all its elements"),
    ],
)
def test_a_state_that_cannot_be_kept_is_refused(states: Any, message: str) -> None:
    network = RunningMean()
    network.initial_states = states  # type: ignore[method-assign]
    spec = TensorSpec("x", "float32", (4,))
    with pytest.raises(ExportError, match=message):
        describe(network, spec, spec)
