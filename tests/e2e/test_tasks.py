"""Every task, from its data to an answer: trained (hardly), exported, verified, published, served and streamed."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from recurra_client import BlockingClient, connect
from recurra_client.cli import run
from recurra_training.cells import Cell
from recurra_training.checkpoint import Trained
from recurra_training.data import Task
from recurra_training.data.dates import SOURCE, TARGET, spell
from recurra_training.data.surnames import TOKENS
from recurra_training.fit import fit
from recurra_training.lessons.plan import load
from recurra_training.models import Network
from recurra_training.release import release
from recurra_training.seq2seq import EncoderDecoder
from recurra_training.signature import Kind
from rich.console import Console

from tests.support.server import ServerProcess, running_server

pytestmark = pytest.mark.e2e

TOLERANCE = 1e-4
CELLS: dict[str, Cell] = {
    "watch": "lstm",
    "watch-once": "rnn",
    "adding": "gru",
    "glucose": "gru",
    "surnames": "lstm",
    "dates": "gru",
    "stocks": "ffnn",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, Trained]:
    """A small network for each task, after one pass over a few recordings; published, those of watch with gates too."""
    made = {}
    for name, cell in CELLS.items():
        task = load(name, smoke=True)
        settings = replace(task.settings, cell=cell, hidden=8, epochs=1)
        made[name] = fit(task, settings, folder / "runs" / name, Console(quiet=True)).trained
        release(made[name], folder / "models", name=name)
    release(made["watch"], folder / "models", name="watch-gates", gates=True)
    return made


@pytest.fixture(scope="module")
def server(folder: Path, trained: dict[str, Trained]) -> Iterator[ServerProcess]:
    with running_server(folder / "models") as process:
        yield process


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[BlockingClient]:
    with connect(server.target) as connected:
        yield connected


@torch.no_grad()
def in_torch(trained: Trained, x: NDArray[np.float32 | np.int64], kind: Kind) -> NDArray[np.float32]:
    """What PyTorch says of one whole sequence: [T, outputs]."""
    assert isinstance(trained.network, Network)
    y, *_ = trained.network(torch.from_numpy(x)[None], *trained.network.initial_states(1))
    answers: NDArray[np.float32] = (y.softmax(-1) if kind == "probability" else y)[0].numpy()
    return answers


def a_test_sequence(task: Task) -> NDArray[np.float32 | np.int64]:
    return task.split().test[0].x[:60]


@pytest.mark.parametrize("name", ["watch", "glucose", "stocks", "surnames"])
def test_many_to_many_is_streamed_step_by_step(name: str, client: BlockingClient, trained: dict[str, Trained]) -> None:
    task = load(name, smoke=True)
    x = a_test_sequence(task)
    with client.session(name) as session:
        answers = np.stack([session.step(step) for step in x])
    expected = in_torch(trained[name], x, task.output.kind)
    np.testing.assert_allclose(answers, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["watch-once", "adding"])
def test_many_to_one_answers_once(name: str, client: BlockingClient, trained: dict[str, Trained]) -> None:
    task = load(name, smoke=True)
    x = a_test_sequence(task)
    answer = client.predict(name, x, last_only=True)
    expected = in_torch(trained[name], x, task.output.kind)[-1]
    np.testing.assert_allclose(answer, expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_one_to_many_spells_a_name_from_its_kind(client: BlockingClient, trained: dict[str, Trained]) -> None:
    begin, end = TOKENS.index("<surname>"), 0

    def spelt(**sampling: float) -> list[int]:
        steps = client.generate("surnames", np.array([begin]), max_steps=12, stop_class=end, **sampling)  # type: ignore[arg-type]
        return [int(step.next_input) for step in steps]

    likely = spelt()
    tokens = [begin]
    while len(tokens) <= len(likely):
        tokens.append(int(in_torch(trained["surnames"], np.array(tokens), "logit")[-1].argmax()))
    assert likely == tokens[1:], "without sampling, the most likely letter follows"

    drawn = [spelt(temperature=1.0, top_k=20, seed=seed) for seed in range(5)]
    assert drawn == [spelt(temperature=1.0, top_k=20, seed=seed) for seed in range(5)]
    assert len({tuple(name) for name in drawn}) > 1


def test_the_encoders_state_opens_the_decoder(client: BlockingClient, trained: dict[str, Trained]) -> None:
    """Two sessions' worth of state: what the encoder answers last is where the decoder begins."""
    network = trained["dates"].network
    assert isinstance(network, EncoderDecoder)
    written = []
    for text in ("March 5, 1993", "24/11/2026"):
        state = client.predict("dates-encoder", np.array(spell(text)), last_only=True)
        with client.session("dates-decoder", initial_states={"h_in": state}) as session:
            steps = client.generate(session, np.array([TARGET.index("<begin>")]), max_steps=11)
            generated = [int(step.next_input) for step in steps]
        fed = [len(SOURCE) + token for token in (TARGET.index("<begin>"), *generated[:-1])]
        with torch.no_grad():
            whole = network(torch.tensor([[*spell(text), *fed]]))[0][0, len(text) :]
        assert generated == whole.argmax(-1).tolist()
        written.append((state, generated))
    assert not np.allclose(written[0][0], written[1][0]), "what was read is in the state"


def test_the_example_in_the_docs_runs(server: ServerProcess) -> None:
    document = (Path(__file__).parents[2] / "docs" / "learning.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    code = example.replace("localhost:50051", server.target)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(ended.stdout.splitlines()) == 2


def test_gates_are_followed_while_a_recording_is_streamed(
    folder: Path,
    server: ServerProcess,
    trained: dict[str, Trained],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    np.save("recording.npy", a_test_sequence(load("watch", smoke=True)))
    at = ("--server", server.target)
    assert run(["stream", "watch-gates", "recording.npy", "--gates", *at]) == 0
    assert "gates drawn into recording_gates.png" in capsys.readouterr().out
    assert Path("recording_gates.png").read_bytes().startswith(b"\x89PNG")
    assert run(["stream", "watch", "recording.npy", "--gates", *at]) == 1
    assert "see the gates of an LSTM published by" in capsys.readouterr().err


def test_gates_leave_the_answers_as_they_are(client: BlockingClient) -> None:
    x = a_test_sequence(load("watch", smoke=True))
    with_gates = client.predict("watch-gates", {"x": x}, outputs=["y", "f", "i", "c_tilde", "c"])
    np.testing.assert_array_equal(with_gates["y"], client.predict("watch", x))
    f, i, candidate, memory = (with_gates[name] for name in ("f", "i", "c_tilde", "c"))
    assert f.shape == (len(x), 1, 8)
    np.testing.assert_allclose(memory[1:], f[1:] * memory[:-1] + i[1:] * candidate[1:], atol=1e-5)
