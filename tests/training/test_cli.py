"""The commands, as they are typed."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from recurra_client.cli import run
from recurra_training.data import TASKS
from recurra_training.publish import publish

from tests.training.graphs import write


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `recurra train watch` has run, shorter than by default."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run(["train", "watch", "--epochs", "1", "--hidden", "8"]) == 0
    return folder


def test_train_publishes_a_model_that_says_how_good_it_is(trained: Path) -> None:
    model = onnx.load(trained / "models/watch/1/model.onnx")
    training = json.loads(next(entry.value for entry in model.metadata_props if entry.key == "recurra.training"))
    figures = training["metrics"]
    assert {"test_accuracy", "majority_accuracy", "feedforward_accuracy"} < set(figures)
    baseline = json.loads((trained / "runs/watch/ffnn-2x8-seed0/run.json").read_text(encoding="utf-8"))
    assert figures["feedforward_accuracy"] == baseline["metrics"]["test_accuracy"]


def test_the_published_model_answers_the_recordings_that_were_written(trained: Path) -> None:
    """The figure that was printed is the one that a caller gets: raw readings in, step by step, as the CSV has them."""
    labels = list(TASKS["watch"]().output.labels)
    session = ort.InferenceSession(str(trained / "models/watch/1/model.onnx"), providers=["CPUExecutionProvider"])
    right = []
    for path in (trained / "runs/watch/held_out").glob("*.csv"):
        rows = np.loadtxt(path, str, delimiter=",", skiprows=1)
        zeros = np.zeros((1, 1, 8), np.float32)
        feed = {"x": rows[None, :, 1:7].astype(np.float32), "h_in": zeros, "c_in": zeros}
        y, *_ = session.run(None, feed)
        right += [labels[answer] == label for answer, label in zip(y[0].argmax(-1), rows[:, 7], strict=True)]
    facts = json.loads((trained / "runs/watch/lstm-1x8-seed0/run.json").read_text(encoding="utf-8"))
    assert np.mean(right) == pytest.approx(facts["metrics"]["test_accuracy"], abs=1e-3)


def test_train_shows_what_it_did(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert run(["train", "watch", "--cells", "ffnn", "--epochs", "1", "--hidden", "8", "--name", "plain"]) == 0
    shown, chatter = capfd.readouterr()
    assert chatter == ""
    for part in ("epoch 1,", "always the most frequent class", "models/plain/1/model.onnx", "runs/watch/held_out"):
        assert part in shown


def test_a_published_model_verifies_with_and_without_its_checkpoint(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    model = "models/watch/1/model.onnx"
    assert run(["verify", model]) == 0
    assert "in PyTorch" not in capsys.readouterr().out
    assert run(["verify", model, "--checkpoint", "runs/watch/lstm-1x8-seed0"]) == 0
    assert "in PyTorch" in capsys.readouterr().out


def test_export_publishes_the_next_version_of_the_same_graph(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = trained / "runs/watch/lstm-1x8-seed0/checkpoints/best.ckpt"
    publish(Path("models"), "watch", lambda path: None)
    assert run(["export", str(checkpoint)]) == 0
    published = (trained / "models/watch/1/model.onnx").read_bytes()
    assert (tmp_path / "models/watch/2/model.onnx").read_bytes() == published


def test_a_finished_run_taken_up_again_publishes_nothing_new(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    assert run(["train", "watch", "--epochs", "1", "--hidden", "8", "--resume"]) == 0
    assert [path.name for path in Path("models/watch").iterdir()] == ["1"]


def test_export_with_gates_answers_them_and_still_verifies(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = str(next((trained / "runs").glob("*/lstm-1x8-seed0")))
    assert run(["export", folder, "--gates", "--name", "gated"]) == 0
    session = ort.InferenceSession("models/gated/1/model.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    assert names == ["y", "f", "i", "c_tilde", "o", "c", "h_out", "c_out"]
    capsys.readouterr()
    assert run(["verify", "models/gated/1/model.onnx", "--checkpoint", folder]) == 0
    assert "in PyTorch" in capsys.readouterr().out
    feed_forward = str(next((trained / "runs").glob("*/ffnn-2x8-seed0")))
    assert run(["export", feed_forward, "--gates", "--name", "plain"]) == 1
    assert "has no memory; export it without --gates" in capsys.readouterr().err


def test_a_bad_model_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "bad.onnx", "y = Tanh(total) s_out = Identity(s_in)")
    assert run(["verify", str(path)]) == 1
    out, err = capsys.readouterr()
    assert "too much" in out
    assert err.startswith("recurra: ")
    assert err.count("\n") == 1
    assert "differs by" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "missing.onnx"], "missing.onnx is not a file"),
        (["export", "missing"], "missing is missing"),
        (["train", "watch", "--epochs", "1", "--name", "a/b", "--runs", "elsewhere"], "name 'a/b' must be"),
        (["train", "watch", "--epochs", "2", "--hidden", "8", "--resume"], "begun with epochs 1, not 2"),
    ],
)
def test_mistakes_are_told_in_one_line(
    trained: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(trained)
    assert run(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("recurra: ")
    assert message in error
    assert error.count("\n") == 1
    assert not Path("elsewhere").exists(), "complain before the work is done"
