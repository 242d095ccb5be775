"""A real server with one of each kind of model."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import models
from tests.support.openinference import Service, service
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository."""
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter(description="A running sum.", step_seconds=60.0))
    models.publish(root, "echo", models.feed_forward(1, 1, feedback={"output": "y", "input": "x"}))
    models.publish(root, "letters", models.letters(5))
    models.publish(root, "lstm", models.lstm(4, 8, 2), version="9")
    models.publish(root, "lstm", models.lstm(4, 8, 2, seed=1), version="10")
    models.publish(root, "watched", models.watched(feedback={"output": "y", "input": "x"}))
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[ServerProcess]:
    """A server process with small bounds."""
    bounds = ("--max-chunk-steps", "500", "--max-queue-per-session", "64", "--stream-window", "32")
    with running_server(repository, *bounds) as process:
        yield process


@pytest.fixture
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    """A connection of its own."""
    stubs = Stubs(server.target)
    yield stubs
    stubs.channel.close()


@pytest.fixture
def infer(stubs: Stubs) -> Service:
    """The Open Inference Protocol over it."""
    return service(stubs.channel)


_numbers = itertools.count(1)


@pytest.fixture
def sequence() -> int:
    """The id of a sequence that no other test uses."""
    return next(_numbers)
