"""What several test folders use."""

import pytest
from hypothesis import settings
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support import models
from tests.support.harness import load

# The engine's promises hold however long an example takes; a busy machine is no failure.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

pytest_plugins = ["tests.support.attacks"]


@pytest.fixture(scope="session")
def runtimes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxRuntime]:
    """One of each kind of model."""
    built = {
        "counter": models.counter(),
        "lstm": models.lstm(4, 8, 2),
        "gru": models.gru(4, 8, 2),
        "rnn": models.rnn(4, 8, 2),
        "feed_forward": models.feed_forward(4, 2),
        "letters": models.letters(5),
    }
    return {name: load(tmp_path_factory.mktemp(name), model) for name, model in built.items()}
