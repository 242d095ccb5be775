"""A real server process, shared by the client's tests, and the command line."""

import csv
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from recurra_client import Client, Session
from recurra_client.cli import run

from tests.support import models
from tests.support.server import ServerProcess, running_server

CLASSES = ["curl", "raise", "press"]
SENSORS = ["ax", "ay", "gx"]
OBEYED = "[red]A[/red]\x1b[2J\x9bm\u202e:ox:"
"""What a terminal, or what writes to it, would obey; `SHOWN` is what is to be seen of it."""
SHOWN = "[red]A[/red][2Jm:ox:"
RECURRA = Path(sys.executable).with_name("recurra")
Run = Callable[..., tuple[int, str, str]]


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
    models.publish(root, "letters", models.letters(5, description=OBEYED))
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


@pytest.fixture
def recurra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the command line in this process, in an empty folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("RECURRA_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "120")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def readings(tmp_path: Path) -> Path:
    """A CSV file whose columns are in another order than the model's, beside columns it does not take."""
    rng = np.random.default_rng(0)
    path = tmp_path / "readings.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "gx", "what", "ay", "ax"])
        for t in range(40):
            writer.writerow([t, *rng.normal(size=1), CLASSES[t // 20], *rng.normal(size=2)])
    return path


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[Client]:
    """An asyncio client of it."""
    async with Client(server.target) as client:
        yield client


async def total(session: Session, x: float = 0.0) -> float:
    """What the counter stands at after one more step."""
    return float((await session.step([x]))[0])
