"""Training in several processes, and what is logged beside the run's own files."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import yaml
from recurra_training.data.segments import Segments
from recurra_training.fit import fit
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.toy import SETTINGS, toy_task

CONSOLE = Console(quiet=True)


def test_processes_share_the_rows_of_every_batch() -> None:
    recordings = toy_task().recordings[:11]  # the last batch has too few rows for all
    whole = list(Segments(recordings, batch_size=5, steps=4))
    parts = [list(Segments(recordings, batch_size=5, steps=4, part=(part, 2))) for part in range(2)]
    assert len(whole) == len(parts[0]) == len(parts[1]), "none waits for another"
    for all_rows, *shared in zip(whole, *parts, strict=True):
        assert all(part.first == all_rows.first for part in shared)
        rows = {row.numpy().tobytes() for part in shared for row in part.x}
        assert rows == {row.numpy().tobytes() for row in all_rows.x}


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Not the same numbers: each averages over its own rows, and draws its own dropout. But as good."""
    task, settings = toy_task(), replace(SETTINGS, epochs=30, dropout=0.0, input_noise=0.0)
    two = fit(task, replace(settings, processes=2), tmp_path / "two", CONSOLE)
    ones = [fit(task, replace(settings, seed=seed), tmp_path / f"one{seed}", CONSOLE) for seed in range(2)]
    reached = [run.metrics["train_accuracy"] for run in ones]
    assert two.metrics["train_accuracy"] > min(reached) - 0.1
    assert len((tmp_path / "two" / "history.csv").read_text(encoding="utf-8").splitlines()) == 31


def test_torchrun_starts_the_processes_of_one_training(tmp_path: Path) -> None:
    """They write one run, publish one model and tell of it once; to resume what is finished trains nothing again."""
    lines = [f"s{i},{x:.3f},{'up' if i % 2 else 'down'}" for i in range(12) for x in np.arange(8) * (i % 2 - 0.5)]
    (tmp_path / "toy.csv").write_text("\n".join(["id,x,way", *lines]), encoding="utf-8")
    recurra = Path(sys.executable).with_name("recurra")
    command: list[str | Path] = [
        recurra.with_name("torchrun"),
        "--nproc-per-node",
        "2",
        "--no-python",
        recurra,
        "train",
    ]
    own = ["--data", "toy.csv", "--sequence", "id", "--inputs", "x", "--target", "way"]
    settings = ["--cells", "gru", "--hidden", "4", "--epochs", "3"]
    for resume in ([], ["--resume"]):
        ended = subprocess.run(
            [*command, *own, *settings, *resume], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("Published") == 1
    (run,) = (tmp_path / "runs" / "toy").glob("gru-*")
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["processes"] == 2
    assert len((run / "history.csv").read_text(encoding="utf-8").splitlines()) == 4
    assert [path.name for path in (tmp_path / "models" / "toy").iterdir()] == ["1"]


def test_a_run_is_logged_to_what_is_installed(tmp_path: Path) -> None:
    fit(toy_task(), replace(SETTINGS, epochs=2), tmp_path / "run", CONSOLE)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    logged = [event.value for event in events.Scalars("validation_accuracy")]
    history = np.genfromtxt(tmp_path / "run" / "history.csv", delimiter=",", names=True)
    np.testing.assert_allclose(logged, history["validation_accuracy"], rtol=1e-5)


def test_the_gradient_is_noted_by_layer(tmp_path: Path) -> None:
    run = fit(toy_task(), replace(SETTINGS, epochs=1, layers=2), tmp_path / "run", CONSOLE)
    history = np.genfromtxt(run.folder / "history.csv", delimiter=",", names=True)
    parts = [float(history[f"gradient_{layer}"]) for layer in ("recurrence_l0", "recurrence_l1", "head")]
    assert all(part > 0 for part in parts)
    assert float(history["gradient"]) < sum(parts), "a norm is less than the sum of the norms of its parts"
    assert torch.isfinite(torch.tensor(parts)).all()
