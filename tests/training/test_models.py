"""The networks: one forward for all, and the same answers however a sequence is cut."""

import pytest
import torch
from recurra_training.build import build as build_network
from recurra_training.cells import Cell
from recurra_training.layers import Normalise
from recurra_training.models import FeedForward, Network, NetworkConfig, RecurrentNet
from torch import Tensor

CELLS: list[Cell] = ["ffnn", "rnn", "rnn-relu", "gru", "lstm"]
TOLERANCE = 1e-6


def build(cell: Cell, layers: int = 2) -> Network:
    torch.manual_seed(0)
    return build_network(NetworkConfig(cell, inputs=3, outputs=2, hidden=5, layers=layers)).eval()


def run_cut(network: Network, x: Tensor, lengths: list[int]) -> tuple[Tensor, ...]:
    """Run a sequence in pieces, the states carried from each to the next."""
    states = network.initial_states(len(x))
    outputs = []
    for piece in torch.split(x, lengths, dim=1):
        y, *states = network(piece, *states)
        outputs.append(y)
    return torch.cat(outputs, 1), *states


@torch.no_grad()
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("lengths", [[1] * 9, [4, 1, 4], [2, 7]])
def test_a_cut_sequence_is_answered_as_the_whole(cell: Cell, layers: int, lengths: list[int]) -> None:
    network = build(cell, layers)
    x = torch.randn(4, 9, 3)
    whole = network(x, *network.initial_states(4))
    for cut, uncut in zip(run_cut(network, x, lengths), whole, strict=True):
        torch.testing.assert_close(cut, uncut, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("cell", "states"), [("ffnn", 0), ("rnn", 1), ("rnn-relu", 1), ("gru", 1), ("lstm", 2)])
def test_the_states_go_in_and_out_in_one_shape(cell: Cell, states: int) -> None:
    network = build(cell)
    before = network.initial_states(4)
    _, *after = network(torch.randn(4, 9, 3), *before)
    assert [state.shape for state in before] == [state.shape for state in after] == [(2, 4, 5)] * states
    assert len(network.state_names) == states


@torch.no_grad()
@pytest.mark.parametrize("cell", ["rnn", "rnn-relu", "gru", "lstm"])
def test_a_recurrent_network_remembers_and_a_feed_forward_one_does_not(cell: Cell) -> None:
    x = torch.randn(1, 9, 3)
    changed = x.clone()
    changed[:, 0] += 1
    recurrent, plain = build(cell), build("ffnn")
    assert (recurrent(x)[0] - recurrent(changed)[0])[:, 1:].abs().max() > 1e-4
    assert torch.equal(plain(x)[0][:, 1:], plain(changed)[0][:, 1:])


@torch.no_grad()
def test_given_no_states_a_sequence_begins() -> None:
    network = build("lstm")
    x = torch.randn(4, 9, 3)
    for implicit, explicit in zip(network(x), network(x, *network.initial_states(4)), strict=True):
        assert torch.equal(implicit, explicit)


@torch.no_grad()
def test_raw_readings_are_normalised_inside_the_network() -> None:
    readings = torch.randn(500, 3) * torch.tensor([1.0, 50.0, 0.0]) + torch.tensor([0.0, -200.0, 7.0])
    normalise = Normalise(3)
    normalise.fit(readings)
    normal = normalise(readings)
    torch.testing.assert_close(normal.mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(normal[:, :2].std(0), torch.ones(2), atol=1e-4, rtol=0)
    assert torch.isfinite(normal).all(), "a constant feature must not divide by zero"


@torch.no_grad()
def test_noise_and_dropout_are_of_training_only() -> None:
    network = RecurrentNet(3, 2, hidden=5, dropout=0.5, input_noise=0.5)
    x = torch.randn(1, 9, 3)
    assert not torch.equal(network.train()(x)[0], network(x)[0])
    assert torch.equal(network.eval()(x)[0], network(x)[0])


def test_an_lstm_begins_by_remembering() -> None:
    def forget_bias(bias: float) -> Tensor:
        torch.manual_seed(0)
        biases: dict[str, Tensor] = RecurrentNet(3, 2, hidden=5, forget_bias=bias).state_dict()
        return biases["recurrence.bias_ih_l0"]

    raised = forget_bias(2.0) - forget_bias(0.0)
    assert raised[5:10].tolist() == pytest.approx([2.0] * 5)
    assert raised[[*range(5), *range(10, 20)]].abs().max() == 0


def test_a_feed_forward_network_has_as_many_hidden_layers_as_asked() -> None:
    assert sum(isinstance(layer, torch.nn.Linear) for layer in FeedForward(3, 2, layers=3).modules()) == 4
