"""Truncated back-propagation through time, and what it is judged by."""

from typing import Any

import numpy as np
import pytest
import torch
from recurra_training import metrics
from recurra_training.data import Recording, Split
from recurra_training.data.segments import Segment, Segments, pad
from recurra_training.learner import Learner
from recurra_training.models import RecurrentNet
from torch import Tensor

from tests.training.toy import toy_task


@pytest.fixture
def learner(monkeypatch: pytest.MonkeyPatch) -> Learner:
    def log(*_args: Any, **_options: Any) -> None:
        """There is no trainer to log to."""

    torch.manual_seed(0)
    made = Learner(RecurrentNet(2, 2, hidden=8), toy_task(), learning_rate=0.01, seed=0, about={})
    monkeypatch.setattr(made, "log", log)
    return made


@pytest.fixture
def segments() -> list[Segment]:
    """A batch of 4 recordings, in segments of 5 steps."""
    return list(Segments(toy_task().recordings[:4], batch_size=4, steps=5))


def step(learner: Learner, segment: Segment) -> Tensor:
    loss = learner.training_step(segment)
    assert loss is not None
    return loss


def score(y: Tensor, segment: Segment) -> dict[str, float]:
    tally = metrics.Tally(("0", "1"), classes=True)
    tally.add(y, segment)
    return tally.figures()


def gradients(learner: Learner, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(learner.network.parameters()), allow_unused=False))


def test_states_are_carried_from_segment_to_segment(learner: Learner, segments: list[Segment]) -> None:
    losses = [step(learner, segment) for segment in segments]
    whole = pad(toy_task().recordings[:4])
    y, *_ = learner.network(whole.x)
    for index, (loss, segment) in enumerate(zip(losses, segments, strict=True)):
        of_whole = metrics.loss(y[:, 5 * index : 5 * index + 5], segment, classes=True)
        torch.testing.assert_close(loss, of_whole)


def test_a_new_batch_begins_anew(learner: Learner, segments: list[Segment]) -> None:
    first = step(learner, segments[0])
    learner.training_step(segments[1])
    assert torch.equal(step(learner, segments[0]), first)


def test_gradients_do_not_flow_into_the_segment_before(learner: Learner, segments: list[Segment]) -> None:
    learner.training_step(segments[0])
    truncated = gradients(learner, step(learner, segments[1]))

    _, *states = learner.network(segments[0].x)
    y, *_ = learner.network(segments[1].x, *(state.detach() for state in states))
    cut = gradients(learner, metrics.loss(y, segments[1], classes=True))
    y, *_ = learner.network(segments[1].x, *states)
    full = gradients(learner, metrics.loss(y, segments[1], classes=True))

    for got, want in zip(truncated, cut, strict=True):
        torch.testing.assert_close(got, want)
    assert any(not torch.allclose(got, flowing, atol=1e-4) for got, flowing in zip(truncated, full, strict=True))


def test_padding_weighs_nothing(segments: list[Segment]) -> None:
    last = segments[-1]
    assert not last.mask.all()
    y = torch.randn(*last.mask.shape, 2)
    nonsense = torch.where(last.mask[..., None], y, 1e6)
    assert torch.equal(metrics.loss(y, last, classes=True), metrics.loss(nonsense, last, classes=True))
    assert score(y, last) == score(nonsense, last)


def test_accuracy_is_the_share_of_steps_and_of_last_steps() -> None:
    segment = Segment(
        torch.zeros(2, 3, 1), torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([[1, 1, 0], [1, 1, 1]]) > 0, first=True
    )
    answers = torch.tensor([[1, 0, 0], [1, 1, 1]])
    figures = score(torch.nn.functional.one_hot(answers, 2).float(), segment)
    nats = [np.log1p(np.exp(1)) - right for right in (1, 0, 1, 1, 1)]
    expected = {"accuracy": 4 / 5, "last_step_accuracy": 1 / 2, "whole_accuracy": 1 / 2}
    assert figures == pytest.approx(expected | {"bits": np.mean(nats) / np.log(2)})


def test_values_are_judged_by_their_error() -> None:
    segment = Segment(torch.zeros(1, 2, 1), torch.tensor([[[1.0], [5.0]]]), torch.ones(1, 2) > 0, first=True)
    tally = metrics.Tally(("y",), classes=False)
    tally.add(torch.tensor([[[4.0], [9.0]]]), segment)
    assert tally.figures() == pytest.approx({"mse": 12.5, "rmse": 12.5**0.5})


def test_each_of_several_values_has_its_own_error() -> None:
    target = torch.zeros(1, 2, 2)
    tally = metrics.Tally(("near", "far"), classes=False)
    tally.add(torch.tensor([[[1.0, 2.0], [1.0, 2.0]]]), Segment(target, target, torch.ones(1, 2) > 0, first=True))
    assert tally.figures() == pytest.approx({"mse": 2.5, "rmse": 2.5**0.5, "rmse_near": 1, "rmse_far": 2})


def test_only_what_is_asked_for_counts() -> None:
    recordings = [
        Recording("", "", np.zeros((3, 1), np.float32), np.array([0, 0, 1]), np.array([False, False, True])),
        Recording("", "", np.zeros((2, 1), np.float32), np.array([0, 1]), np.array([False, True])),
    ]
    segment = pad(recordings)
    answers = torch.tensor([[0, 0, 1], [0, 0, 0]])
    figures = score(torch.nn.functional.one_hot(answers, 2).float(), segment)
    assert figures["accuracy"] == figures["last_step_accuracy"] == figures["whole_accuracy"] == 1 / 2


def test_the_constant_answer_is_taken_from_the_training_recordings() -> None:
    def recording(target: list[int]) -> Recording:
        return Recording("", "", np.zeros((len(target), 1), np.float32), np.array(target))

    split = Split((recording([0, 1, 1]),), (), (recording([0, 0, 0, 1]),))
    assert metrics.constant_baseline(toy_task(), split) == {"majority": 0.25}
