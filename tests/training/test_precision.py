"""Smaller files: what they keep, and what they lose."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from recurra_client.cli import run
from recurra_training.checkpoint import Trained
from recurra_training.contract import read_model
from recurra_training.data import Task
from recurra_training.describe import describe
from recurra_training.export import export_onnx
from recurra_training.fit import fit
from recurra_training.measure import evaluate_file, seconds_a_call
from recurra_training.metrics import evaluate
from recurra_training.models import RecurrentNet
from recurra_training.precision import Precision, reduce_precision
from recurra_training.verify import DifferenceError, verify
from rich.console import Console

from tests.training.toy import SETTINGS, toy_task


@pytest.fixture(scope="module")
def task() -> Task:
    return toy_task()


@pytest.fixture(scope="module")
def trained(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    settings = replace(SETTINGS, hidden=64, epochs=2)
    return fit(task, settings, tmp_path_factory.mktemp("precision") / "run", Console(quiet=True)).trained


@pytest.fixture(scope="module")
def files(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    folder = tmp_path_factory.mktemp("files")
    paths: dict[Precision, Path] = {name: folder / f"{name}.onnx" for name in ("float32", "float16", "int8")}
    export_onnx(trained.network, paths["float32"], trained.signature, trained.facts)
    for name, path in paths.items():
        reduce_precision(paths["float32"], path, name)
    return paths


def test_a_file_is_judged_as_the_network_is(task: Task, trained: Trained, files: dict[Precision, Path]) -> None:
    test = task.split().test
    assert evaluate_file(files["float32"], test, task) == pytest.approx(evaluate(trained.network, test, task), rel=1e-4)


def test_float16_is_half_as_large_and_verifies_as_it_is(files: dict[Precision, Path]) -> None:
    weights = sum(np.prod(tensor.dims) for tensor in onnx.load(files["float32"]).graph.initializer)
    saved = files["float32"].stat().st_size - files["float16"].stat().st_size
    assert saved == pytest.approx(2 * weights, rel=0.1)
    assert all(check.passed for check in verify(files["float16"]))


def test_int8_is_a_quarter_and_its_rows_are_not_quite_alone(files: dict[Precision, Path]) -> None:
    assert files["int8"].stat().st_size < 0.45 * files["float32"].stat().st_size
    assert "DynamicQuantizeLSTM" in {node.op_type for node in onnx.load(files["int8"]).graph.node}
    with pytest.raises(DifferenceError) as caught:
        verify(files["int8"])
    differences = {check.name: check.difference for check in caught.value.checks}
    assert differences["step by step"] < 0.05
    assert differences["beside other mates"] > 1e-3, "a mate ten times larger takes the scale from all others"
    assert all(check.passed for check in verify(files["int8"], tolerance=1.0))


@pytest.mark.parametrize("name", ["float16", "int8"])
def test_little_accuracy_is_lost(name: Precision, task: Task, trained: Trained, files: dict[Precision, Path]) -> None:
    test = task.split().test
    full, reduced = (evaluate_file(files[one], test, task) for one in ("float32", name))
    assert reduced["bits"] == pytest.approx(full["bits"], abs=0.02)
    assert read_model(files[name]) == read_model(files["float32"]), "the caller sees the same model"


def test_files_are_timed_beside_one_another(files: dict[Precision, Path]) -> None:
    assert all(seconds > 0 for seconds in seconds_a_call(files, 4).values())


def test_export_publishes_int8_only_to_who_allows_it(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = replace(SETTINGS, hidden=64, epochs=1)
    fit(toy_task(), settings, tmp_path / "run", Console(quiet=True))
    assert run(["export", "run", "--precision", "int8"]) == 1
    assert "differs by" in capsys.readouterr().err
    assert not Path("models/toy").exists()
    assert run(["export", "run", "--precision", "int8", "--tolerance", "1"]) == 0
    assert run(["export", "run", "--precision", "float16"]) == 0
    assert {path.name for path in Path("models/toy").iterdir()} == {"1", "2"}


def test_a_gru_keeps_its_weights_in_int8_files(tmp_path: Path) -> None:
    """ONNX Runtime has no quantised GRU: the page of a training shows that nothing is won."""
    torch.manual_seed(0)
    network = RecurrentNet(2, 2, cell="gru", hidden=64)
    export_onnx(network, tmp_path / "gru.onnx", describe(network))
    reduce_precision(tmp_path / "gru.onnx", tmp_path / "int8.onnx", "int8")
    assert "GRU" in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
