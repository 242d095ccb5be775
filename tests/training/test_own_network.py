"""Networks of one's own: anything with `forward(x, *states) -> (y, *states)` is trained, verified and published."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from recurra_training.checkpoint import load_trained
from recurra_training.errors import RunError
from recurra_training.fit import fit
from recurra_training.mingru import MinGRU
from recurra_training.release import release
from rich.console import Console
from torch import Tensor, nn

from tests.training.toy import SETTINGS, toy_task

CONSOLE = Console(quiet=True)


class DecayingSums(nn.Module):
    """A diagonal state-space layer that owes nothing to this project: each unit is a sum that fades at its own pace."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(1, 5, 8))
        self.write, self.head = nn.Linear(2, 8), nn.Linear(8, 2)

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch, 8),)

    def forward(self, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        # s_t = a s_{t-1} + u_t, in closed form: s_t = sum over k <= t of a^(t-k) u_k, and a^t of what was there before
        t = torch.arange(x.shape[1])
        age = t[:, None] - t[None, :]
        log_a = nn.functional.logsigmoid(self.decay)
        weights = torch.exp(age.clamp(min=0)[..., None] * log_a) * (age >= 0)[..., None]
        before = torch.exp((t[:, None] + 1) * log_a) * s[:, None]
        states = torch.einsum("tkh,bkh->bth", weights, self.write(x)) + before
        return self.head(states), states[:, -1]


@pytest.mark.parametrize("make", [lambda: MinGRU(2, 2, hidden=8), DecayingSums])
def test_it_is_trained_verified_published_and_read_back(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    task = toy_task()
    run = fit(task, replace(SETTINGS, epochs=2), tmp_path / "run", CONSOLE, network=make)
    (published,) = release(run.trained, tmp_path / "models", sequences=[one.x for one in task.recordings])
    assert published.path.is_file()
    assert {check.name for check in published.checks} >= {"step by step", "in one batch", "in PyTorch"}
    again = load_trained(tmp_path / "run", make)
    for ours, theirs in zip(again.network.parameters(), run.trained.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(RunError, match="of a network of one's own"):
        load_trained(tmp_path / "run")


def test_a_mingru_learns_what_wants_memory(tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=40)
    run = fit(toy_task(), settings, tmp_path / "run", CONSOLE, network=lambda: MinGRU(2, 2, hidden=16))
    assert run.metrics["train_accuracy"] > 0.85, "a network without memory stays below 0.75"
