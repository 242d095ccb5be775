"""A real server with a recurrent model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import models
from tests.support.server import ServerProcess, running_server


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository."""
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "lstm", models.lstm(4, 8, 2))
    models.publish(root, "watch", models.lstm(6, 8, 7))
    models.publish(root, "counter", models.counter())
    models.publish(root, "letters", models.letters(5))
    return root


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[ServerProcess]:
    """A server process with small bounds."""
    with running_server(repository, "--max-chunk-steps", "500", "--max-sessions", "2000") as process:
        yield process
