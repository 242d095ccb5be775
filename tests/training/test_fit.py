"""Training runs: repeatable, resumable, and judged by recordings that they never saw."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import yaml
from recurra_training import metrics
from recurra_training.checkpoint import load_trained
from recurra_training.checkpoint_io import AtomicCheckpointIO
from recurra_training.data import Recording, Task
from recurra_training.data.segments import Segment
from recurra_training.errors import RunError
from recurra_training.fit import Run, fit
from recurra_training.settings import Settings
from rich.console import Console

from tests.training.toy import SETTINGS, toy_task

CONSOLE = Console(quiet=True)


class MachineDownError(Exception):
    """Stands for a machine that goes down."""


class StopIn(pl.Callback):
    """Interrupts a training in the middle of an epoch."""

    def __init__(self, epoch: int, error: BaseException) -> None:
        self._epoch = epoch
        self._error = error

    def on_train_batch_end(self, trainer: pl.Trainer, *_args: Any) -> None:
        if trainer.current_epoch == self._epoch:
            raise self._error


class Watch(pl.Callback):
    """Notes how each epoch begins: the first reading, and where the random generator stands."""

    def __init__(self) -> None:
        self.readings: list[float] = []
        self.generator: list[bytes] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Segment, batch_idx: int) -> None:
        if batch_idx == 0:
            self.readings.append(float(batch.x[0, 0, 0]))
            self.generator.append(torch.get_rng_state().numpy().tobytes())


@pytest.fixture(scope="module")
def task() -> Task:
    return toy_task()


@pytest.fixture(scope="module")
def run(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of its own to the end."""
    return fit(task, SETTINGS, tmp_path_factory.mktemp("runs") / "run", CONSOLE)


def weights(run: Run) -> list[torch.Tensor]:
    return list(run.trained.network.state_dict().values())


def history(run: Run) -> list[dict[str, str]]:
    with (run.folder / "history.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def timeless(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.trained.facts.items() if key != "seconds"}


def same(one: Run, other: Run) -> bool:
    return all(torch.equal(*pair) for pair in zip(weights(one), weights(other), strict=True))


def test_the_same_seed_gives_the_same_run_and_another_another(task: Task, run: Run, tmp_path: Path) -> None:
    torch.rand(7)  # whatever was drawn before
    again = fit(task, SETTINGS, tmp_path / "again", CONSOLE)
    assert same(run, again)
    assert history(run) == history(again)
    assert not same(run, fit(task, replace(SETTINGS, seed=1), tmp_path / "other", CONSOLE))


def test_each_epoch_and_each_seed_has_an_order_and_a_noise_of_its_own(task: Task, tmp_path: Path) -> None:
    readings, generator = [], []
    for seed in (0, 1):
        watch = Watch()
        fit(task, replace(SETTINGS, seed=seed), tmp_path / "run", CONSOLE, callbacks=[watch])
        readings.append(tuple(watch.readings))
        generator += watch.generator
    assert len(set(readings[0])) > 1
    assert len(set(readings)) == 2
    assert len(set(generator)) == 2 * SETTINGS.epochs


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_run_taken_up_again_ends_as_if_it_had_not_been_interrupted(
    task: Task, run: Run, tmp_path: Path, epoch: int
) -> None:
    with pytest.raises(MachineDownError):
        fit(task, SETTINGS, tmp_path / "run", CONSOLE, callbacks=[StopIn(epoch, MachineDownError())])
    assert not (tmp_path / "run" / "run.json").exists()
    torch.rand(7)
    watch = Watch()
    resumed = fit(task, SETTINGS, tmp_path / "run", CONSOLE, resume=True, callbacks=[watch])
    assert len(watch.readings) == SETTINGS.epochs - epoch, "what is done is not done again"
    assert same(run, resumed)
    assert history(run) == history(resumed)
    assert timeless(resumed) == timeless(run)


def test_a_falling_step_size_goes_on_where_it_was(task: Task, tmp_path: Path) -> None:
    class Steps(pl.Callback):
        def __init__(self) -> None:
            self.sizes: list[float] = []

        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            self.sizes.append(trainer.optimizers[0].param_groups[0]["lr"])

    falling, steps = replace(SETTINGS, schedule="cosine"), Steps()
    whole = fit(task, falling, tmp_path / "whole", CONSOLE, callbacks=[steps])
    sizes = sorted(set(steps.sizes), reverse=True)
    expected = [SETTINGS.learning_rate * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(SETTINGS.epochs)]
    assert sizes == pytest.approx(expected)
    with pytest.raises(MachineDownError):
        fit(task, falling, tmp_path / "run", CONSOLE, callbacks=[StopIn(2, MachineDownError())])
    assert same(whole, fit(task, falling, tmp_path / "run", CONSOLE, resume=True))


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks_off(checkpoint: object, file: IO[bytes]) -> None:
        file.write(b"half a checkp")
        raise MachineDownError

    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    monkeypatch.setattr(torch, "save", breaks_off)
    with pytest.raises(MachineDownError):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_ctrl_c_is_what_it_is(task: Task, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(task, SETTINGS, tmp_path / "run", CONSOLE, callbacks=[StopIn(1, KeyboardInterrupt())])


def test_a_finished_run_is_not_trained_again(task: Task, run: Run) -> None:
    resumed = fit(task, SETTINGS, run.folder, CONSOLE, resume=True, callbacks=[StopIn(0, MachineDownError())])
    assert same(run, resumed)


def test_a_run_is_not_resumed_with_other_settings(task: Task, run: Run) -> None:
    with pytest.raises(RunError, match="begun with hidden 8, not 9"):
        fit(task, replace(SETTINGS, hidden=9), run.folder, CONSOLE, resume=True)


def test_the_best_weights_are_kept_not_the_last(task: Task, tmp_path: Path) -> None:
    class Spoil(pl.Callback):
        """Makes the network say the opposite in the last epoch."""

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_args: Any) -> None:
            if trainer.is_last_batch and trainer.current_epoch == SETTINGS.epochs - 1:
                with torch.no_grad():
                    for parameter in pl_module.network.head.parameters():  # type: ignore[union-attr]
                        parameter.neg_()

    run = fit(task, SETTINGS, tmp_path / "run", CONSOLE, callbacks=[Spoil()])
    accuracies = [float(epoch["validation_accuracy"]) for epoch in history(run)]
    assert accuracies[-1] < max(accuracies)
    kept = metrics.evaluate(run.trained.network, task.split().validation, task)["accuracy"]
    assert kept == pytest.approx(max(accuracies))


def test_training_stops_when_it_gets_no_better(task: Task, tmp_path: Path) -> None:
    run = fit(task, replace(SETTINGS, epochs=50, patience=2, learning_rate=1e-9), tmp_path / "run", CONSOLE)
    assert len(history(run)) == 3


def test_the_test_recordings_have_no_part_in_training(task: Task, run: Run, tmp_path: Path) -> None:
    tested = {recording.group for recording in task.split().test}

    def scrambled(recording: Recording) -> Recording:
        if recording.group not in tested:
            return recording
        return replace(recording, x=np.full_like(recording.x, 1e3), target=1 - recording.target)

    other = replace(task, recordings=tuple(scrambled(recording) for recording in task.recordings))
    assert same(run, fit(other, SETTINGS, tmp_path / "run", CONSOLE))


def test_the_gradient_is_clipped(task: Task, tmp_path: Path) -> None:
    norms: list[float] = []

    class Norms(pl.Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_args: Any) -> None:
            parameters = [parameter.grad.norm() for parameter in pl_module.parameters() if parameter.grad is not None]
            norms.append(float(torch.stack(parameters).norm()))

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_args: Any) -> None:
            parameters = [parameter.grad.norm() for parameter in pl_module.parameters() if parameter.grad is not None]
            norms[-1] = min(norms[-1], float(torch.stack(parameters).norm()))

    fit(task, replace(SETTINGS, epochs=1, clip=1e-3), tmp_path / "run", CONSOLE, callbacks=[Norms()])
    assert max(norms) <= 1e-3 * 1.01


def test_a_run_says_how_it_came_about(task: Task, run: Run) -> None:
    config = yaml.safe_load((run.folder / "config.yaml").read_text(encoding="utf-8"))
    facts = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    assert config["task"] == "toy"
    assert Settings(**{key: value for key, value in config.items() if key != "task"}) == SETTINGS
    assert facts["seed"] == SETTINGS.seed
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["test_groups"] == sorted({recording.group for recording in task.split().test})
    test_figures = metrics.evaluate(run.trained.network, task.split().test, task)
    assert facts["metrics"]["test_accuracy"] == pytest.approx(test_figures["accuracy"], rel=1e-4)


def test_memory_pays_where_the_task_wants_it(task: Task, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=40, dropout=0.0, input_noise=0.0)
    accuracy = {
        cell: fit(task, replace(settings, cell=cell), tmp_path / cell, CONSOLE).metrics["train_accuracy"]
        for cell in ("lstm", "ffnn")
    }
    assert accuracy["lstm"] > 0.95
    assert accuracy["ffnn"] < 0.75


def test_a_diverged_training_says_so(task: Task, tmp_path: Path) -> None:
    broken = replace(task, recordings=tuple(replace(one, x=one.x * np.nan) for one in task.recordings))
    with pytest.raises(RunError, match="the loss is nan in epoch 1"):
        fit(broken, SETTINGS, tmp_path / "run", CONSOLE)


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.ckpt"
    path.write_bytes(content)
    with pytest.raises(RunError, match="not a checkpoint"):
        load_trained(path)
    with pytest.raises(RunError, match="missing"):
        load_trained(tmp_path)
