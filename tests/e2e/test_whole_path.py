"""From a PyTorch module to 64 callers at once: exported, served by a real process, streamed, watched, drained."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from recurra_client import Client
from recurra_client.errors import UnavailableError
from recurra_training.export import export_onnx
from recurra_training.models import Network, RecurrentNet

from tests.support.server import ServerProcess, running_server

pytestmark = pytest.mark.e2e

SESSIONS = 64
STEPS = 120
TOLERANCE = 1e-5

Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def network() -> Network:
    """A stacked LSTM with random weights."""
    torch.manual_seed(0)
    return RecurrentNet(6, 3, cell="lstm", hidden=32, layers=2).eval()


@pytest.fixture(scope="module")
def repository(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That network, exported."""
    root = tmp_path_factory.mktemp("models")
    path = root / "net" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    export_onnx(network, path)
    return root


@pytest.fixture
def server(repository: Path) -> Iterator[ServerProcess]:
    """A server of it, that gives streams a second to end."""
    with running_server(repository, "--drain-seconds", "1") as process:
        yield process


@pytest.fixture(scope="module")
def sequences() -> Array:
    """One for each session: [SESSIONS, STEPS, 6]."""
    return np.random.default_rng(0).normal(size=(SESSIONS, STEPS, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def expected(network: Network, sequences: Array) -> Array:
    """What PyTorch says of the whole sequences: [SESSIONS, STEPS, 3]."""
    with torch.no_grad():
        outputs: Array = network(torch.from_numpy(sequences), *network.initial_states(SESSIONS))[0].numpy()
    return outputs


async def test_64_sessions_at_once_answer_as_pytorch_does(
    server: ServerProcess, sequences: Array, expected: Array
) -> None:
    async def stream(client: Client, row: int) -> Array:
        rng = np.random.default_rng(row)
        outputs: list[Array] = []
        async with client.session("net") as session:
            position = 0
            while position < STEPS:  # single steps and chunks of random lengths, mixed
                length = int(rng.integers(1, 9))
                chunk = sequences[row, position : position + length]
                answer = [await session.step(chunk[0])] if len(chunk) == 1 else list(await session.steps(chunk))
                outputs += answer
                position += len(chunk)
        return np.stack(outputs)

    async with Client(server.target) as client:
        answers = await asyncio.gather(*(stream(client, row) for row in range(SESSIONS)))
    np.testing.assert_allclose(np.stack(answers), expected, atol=TOLERANCE, rtol=0)

    samples = server.metrics()
    net = {"model": "net", "version": "1"}
    assert samples.get("recurra_timesteps_total", **net) == SESSIONS * STEPS
    assert samples.get("recurra_sessions_opened_total", **net) == SESSIONS
    assert samples.get("recurra_sessions_ended_total", **net, reason="closed") == SESSIONS
    assert samples.get("recurra_sessions", **net) == 0
    assert samples.get("recurra_queue_depth", **net) == 0
    batches = samples.get("recurra_batch_size_count", **net)
    assert batches is not None
    assert batches < SESSIONS * STEPS, "no two sessions ever shared a model call"


async def test_a_drain_in_mid_stream_loses_no_answer(server: ServerProcess, sequences: Array, expected: Array) -> None:
    """SIGTERM while 64 sessions stream: each gets right answers, without a gap, until its stream is ended in order."""
    answers: list[list[Array]] = [[] for _ in range(SESSIONS)]
    under_way = asyncio.Event()

    async def stream(client: Client, row: int) -> None:
        async with client.session("net", keep=True) as session:
            for number in range(10**9):
                try:
                    answers[row].append(await session.step(sequences[row, number % STEPS]))
                except UnavailableError:
                    return
                if min(map(len, answers)) >= 10:
                    under_way.set()

    async with Client(server.target, reconnect=0.0, timeout=60.0) as client:
        streams = [asyncio.create_task(stream(client, row)) for row in range(SESSIONS)]
        await under_way.wait()
        server.terminate()
        await asyncio.gather(*streams)
    assert await asyncio.to_thread(server.wait) == 0
    assert "Traceback" not in server.output
    for row, outputs in enumerate(answers):
        count = min(len(outputs), STEPS)
        assert count >= 10
        np.testing.assert_allclose(np.stack(outputs[:count]), expected[row, :count], atol=TOLERANCE, rtol=0)


async def test_a_crash_is_told_as_one(server: ServerProcess, sequences: Array) -> None:
    """A server that is killed takes its sessions with it: the caller is told so, and not answered from zero."""
    async with Client(server.target, reconnect=0.0) as client:
        session = await client.session("net", keep=True).open()
        await session.step(sequences[0, 0])
        server.kill()
        with pytest.raises(UnavailableError):
            await session.step(sequences[0, 1])
