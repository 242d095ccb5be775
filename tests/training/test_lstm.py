"""Our own LSTM against PyTorch's, and what of it is exported."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_training.describe import describe
from recurra_training.errors import ExportError
from recurra_training.export import export_onnx
from recurra_training.gates import GATES, WithGates, add_gates, has_gates, with_gates
from recurra_training.lstm import LSTM
from recurra_training.models import FeedForward, RecurrentNet
from recurra_training.signature import TensorSpec
from recurra_training.verify import verify
from torch import Tensor, nn

SAME = 1e-6
"""For float32 values of about 1."""
GATE_ROWS = {"input": 0, "forget": 1, "candidate": 2, "output": 3}
"""Where PyTorch has a gate's weights."""


def assert_same(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Within the tolerance, relative to the largest value where that is above 1."""
    assert got.shape == want.shape
    got, want = got.detach(), want.detach()
    assert float((got - want).abs().max()) <= tolerance * max(1.0, float(want.abs().max()))


sizes = st.fixed_dictionaries(
    {
        "inputs": st.integers(1, 5),
        "hidden": st.integers(1, 9),
        "layers": st.integers(1, 3),
        "batch": st.integers(1, 4),
        "steps": st.integers(1, 25),
        "scale": st.sampled_from([0.3, 1.0, 3.0]),
        "seed": st.integers(0, 2**31),
    }
)


Drawn = tuple[nn.LSTM, Tensor, Tensor, Tensor]


def drawn(size: dict[str, Any]) -> Drawn:
    """A network with weights of any size, readings, and states that a sequence has come to, in float64."""
    torch.manual_seed(size["seed"])
    theirs = nn.LSTM(size["inputs"], size["hidden"], size["layers"], batch_first=True, dtype=torch.float64)
    for weights in theirs.parameters():
        nn.init.normal_(weights, std=size["scale"] / size["hidden"] ** 0.5)
    x = torch.randn(size["batch"], size["steps"], size["inputs"], dtype=torch.float64, requires_grad=True)
    shape = (size["layers"], size["batch"], size["hidden"])
    h, c = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in "hc")
    return theirs, x, h, c


def compare(theirs: nn.LSTM, x: Tensor, h: Tensor, c: Tensor, tolerance: float) -> None:
    """Values, and the gradient of a loss that all of them have a part in."""
    ours = LSTM.from_torch(theirs)
    y, *_, h_ours, c_ours = ours(x, h, c)
    y_theirs, (h_theirs, c_theirs) = theirs(x, (h, c))
    for got, want in ((y, y_theirs), (h_ours, h_theirs), (c_ours, c_theirs)):
        assert_same(got, want, tolerance)
    weights = torch.randn_like(y)
    ((weights * y).mean() + c_ours.square().mean()).backward()
    of_readings = [x.grad, h.grad, c.grad]
    x.grad = h.grad = c.grad = None
    ((weights * y_theirs).mean() + c_theirs.square().mean()).backward()
    for got, want in zip(of_readings, (x.grad, h.grad, c.grad), strict=True):
        assert got is not None
        assert want is not None
        assert_same(got, want, tolerance)
    wanted = {name: weight.grad for name, weight in theirs.named_parameters()}
    for name, weight in ours.named_parameters():
        _, layer, gate, kind = name.split(".")
        rows = slice(GATE_ROWS[gate] * theirs.hidden_size, (GATE_ROWS[gate] + 1) * theirs.hidden_size)
        parts = ("weight_hh", "weight_ih") if kind == "weight" else ("bias_ih",)
        gradients = [gradient[rows] for part in parts if (gradient := wanted[f"{part}_l{layer}"]) is not None]
        assert weight.grad is not None
        assert_same(weight.grad, torch.cat(gradients, dim=-1), tolerance)


@given(sizes)
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_are_those_of_pytorch(size: dict[str, Any]) -> None:
    """In float64, in which rounding does not blur what the equations say."""
    compare(*drawn(size), tolerance=1e-11)


@pytest.mark.parametrize("layers", [1, 2])
def test_in_float32_they_agree_as_far_as_it_goes(layers: int) -> None:
    torch.manual_seed(layers)
    x = torch.randn(8, 100, 6, requires_grad=True)
    h, c = (torch.randn(layers, 8, 64, requires_grad=True) for _ in "hc")
    compare(nn.LSTM(6, 64, layers, batch_first=True), x, h, c, SAME)


@given(sizes)
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_weights_go_to_pytorch_and_back(size: dict[str, Any]) -> None:
    _, x, h, c = drawn(size)
    ours = LSTM(size["inputs"], size["hidden"], size["layers"]).double()
    y, *_, h_ours, c_ours = ours(x, h, c)
    y_theirs, (h_theirs, c_theirs) = ours.to_torch()(x, (h, c))
    for got, want in ((y_theirs, y), (h_theirs, h_ours), (c_theirs, c_ours)):
        assert_same(got, want, 1e-11)
    again = LSTM.from_torch(ours.to_torch()).state_dict()
    assert all(torch.equal(again[name], value) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("options", [{"bidirectional": True}, {"proj_size": 1}, {"bias": False}])
def test_what_the_equations_do_not_say_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="one direction, with biases"):
        LSTM.from_torch(nn.LSTM(2, 3, **options))


def network(layers: int, **options: Any) -> RecurrentNet:
    torch.manual_seed(layers)
    made = RecurrentNet(3, 2, hidden=5, layers=layers, dropout=0.5, input_noise=0.5, **options)
    made.fit_scales(10 * torch.randn(100, 3) + 5, None)
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[RecurrentNet, Path]:
    net = network(2)
    path = tmp_path_factory.mktemp("gates") / "model.onnx"
    watched, signature = with_gates(net, describe(net, kind="probability"))
    assert has_gates(signature)
    export_onnx(watched, path, signature)
    return net, path


def run(path: Path, net: RecurrentNet, x: Tensor) -> dict[str, Any]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    h, c = (state.numpy() for state in net.initial_states(len(x)))
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, {"x": x.numpy(), "h_in": h, "c_in": c}), strict=True))


def test_gates_are_proven_alike_step_by_step_and_whole(exported: tuple[RecurrentNet, Path]) -> None:
    net, path = exported
    checks = verify(path, WithGates(net))
    assert checks[-1].name == "in PyTorch"


def test_gates_are_those_that_made_the_answers(exported: tuple[RecurrentNet, Path]) -> None:
    """From the outputs alone: the memory is kept and written, and reading it gives the state h."""
    net, path = exported
    answers = run(path, net, 5 + 10 * torch.randn(4, 9, 3))
    f, i, c_tilde, o, c = (answers[name] for name in GATES)
    layers = net.recurrence.num_layers
    assert c.shape == (4, 9, layers, 5)
    before = np.concatenate([np.zeros_like(c[:, :1]), c[:, :-1]], axis=1)
    np.testing.assert_allclose(c, f * before + i * c_tilde, atol=SAME)
    np.testing.assert_allclose((o * np.tanh(c))[:, -1], np.moveaxis(answers["h_out"], 1, 0), atol=SAME)
    np.testing.assert_allclose(c[:, -1], np.moveaxis(answers["c_out"], 1, 0), atol=SAME)
    assert all(((gate > 0) & (gate < 1)).all() for gate in (f, i, o))


@pytest.mark.parametrize(("name", "at"), [("i", 0), ("f", 1), ("c_tilde", 2), ("o", 3)])
def test_each_gate_stands_under_its_own_name(name: str, at: int) -> None:
    """Held open by its bias alone: f and i, swapped, would still make a memory."""
    net = network(1, forget_bias=0.0)
    with torch.no_grad():
        for weights in net.recurrence.parameters():
            weights.zero_()
        net.recurrence.get_parameter("bias_ih_l0")[5 * at : 5 * (at + 1)] = 50.0
        _, *gates, _, _ = WithGates(net).eval()(torch.randn(1, 2, 3), *net.initial_states(1))
    values = {gate: float(value[0, 0, 0, 0]) for gate, value in zip(GATES, gates, strict=True) if gate != "c"}
    assert values == {"f": 0.5, "i": 0.5, "o": 0.5, "c_tilde": 0.0} | {name: 1.0}


def test_answers_are_the_same_to_the_last_bit(exported: tuple[RecurrentNet, Path], tmp_path: Path) -> None:
    net, path = exported
    plain = tmp_path / "plain.onnx"
    export_onnx(net, plain, describe(net, kind="probability"))
    x = 5 + 10 * torch.randn(3, 7, 3)
    with_them, without = run(path, net, x), run(plain, net, x)
    assert all((with_them[name] == value).all() for name, value in without.items())


def test_the_gates_can_be_cut_off(exported: tuple[RecurrentNet, Path], tmp_path: Path) -> None:
    """They are a branch of their own: what is left without it is the graph that has none."""
    net, path = exported
    export_onnx(net, tmp_path / "plain.onnx", describe(net, kind="probability"))
    model = onnx.load(path)
    cut = onnx.utils.Extractor(model).extract_model(["x", "h_in", "c_in"], ["y", "h_out", "c_out"])
    plain = onnx.load(tmp_path / "plain.onnx")
    assert [node.op_type for node in cut.graph.node] == [node.op_type for node in plain.graph.node]


def test_one_network_has_one_file(exported: tuple[RecurrentNet, Path], tmp_path: Path) -> None:
    net, path = exported
    watched, signature = with_gates(net, describe(net, kind="probability"))
    export_onnx(watched, tmp_path / "again.onnx", signature)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_our_own_cell_is_exported_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = LSTM(3, 5)
    signature = add_gates(describe(own, TensorSpec("x", "float32", (3,)), TensorSpec("y", "float32", (5,))))
    export_onnx(own, tmp_path / "own.onnx", signature)
    assert verify(tmp_path / "own.onnx", own)[-1].name == "in PyTorch"
    operators = {node.op_type for node in onnx.load(tmp_path / "own.onnx").graph.node}
    assert "Scan" in operators
    assert "LSTM" not in operators


def test_the_server_takes_the_gates_for_outputs(exported: tuple[RecurrentNet, Path]) -> None:
    net, path = exported
    signature = OnnxRuntime(path).signature
    assert [spec.name for spec in signature.outputs] == ["y", *GATES]
    assert [state.input_name for state in signature.states] == ["h_in", "c_in"]
    assert signature.outputs[1].dims == (net.recurrence.num_layers, 5)


def test_only_an_lstm_has_gates() -> None:
    gru = RecurrentNet(3, 2, cell="gru")
    with pytest.raises(ExportError, match="this network is a GRU"):
        with_gates(gru, describe(gru))
    plain = FeedForward(3, 2)
    with pytest.raises(ExportError, match="has no memory"):
        with_gates(plain, describe(plain))
