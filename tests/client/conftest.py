"""A real server process, shared by the client's tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from tests.support import models
from tests.support.server import ServerProcess, running_server

CLASSES = ["curl", "raise", "press"]
SENSORS = ["ax", "ay", "gx"]


def with_fields(model: onnx.ModelProto, **fields: Any) -> onnx.ModelProto:
    """Change fields of a model's signature."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    signature = json.loads(properties["recurra.signature"]) | fields
    helper.set_model_props(model, {**properties, "recurra.signature": json.dumps(signature)})
    return model


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository."""
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter())
    models.publish(root, "lstm", models.lstm(4, 8, 2))
    models.publish(root, "letters", models.letters(5))
    models.publish(root, "watched", models.watched(feedback={"output": "y", "input": "x"}))
    tensor = {"name": "x", "dtype": "float32", "dims": [3], "labels": SENSORS, "units": ["m/s^2"]}
    classes = {"name": "y", "dtype": "float32", "dims": [3], "kind": "logit", "labels": CLASSES}
    exercise = with_fields(
        models.lstm(3, 8, 3), inputs=[tensor], outputs=[classes], step_seconds=0.02, description="Which exercise it is."
    )
    models.publish(root, "watch", exercise)
    return root


@pytest.fixture(scope="session")
def server(models_folder: Path) -> Iterator[ServerProcess]:
    """A server of those models."""
    with running_server(models_folder) as process:
        yield process
