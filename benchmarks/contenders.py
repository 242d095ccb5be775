"""Who is measured: how each is started, and how it is spoken to."""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.dialects import Dialect, Recurra
from benchmarks.peers.dialects import OpenInference
from benchmarks.processes import free_port, running

ROOT: Final = Path(__file__).parent.parent
OPEN_INFERENCE: Final = "recurra, Open Inference"


@dataclass(frozen=True)
class Launch:
    """A command that serves on a port.

    Attributes:
        command: Strings and paths.
        env: Environment variables to add.
        folder: Where it is to run.
    """

    command: Sequence[Any]
    env: dict[str, str] = field(default_factory=dict)
    folder: Path = ROOT


@dataclass(frozen=True)
class Contender:
    """One that is measured.

    Attributes:
        name: As it stands in tables.
        dialect: How it is spoken to.
        launch: The command for a port; may install what it needs first.
        checked: Whether its answers are to be those of the model.
    """

    name: str
    dialect: Dialect
    launch: Callable[[int], Launch]
    checked: bool = True

    def running(self, port: int) -> AbstractContextManager[int]:
        """The server for the length of a `with` block: its process id.

        Raises:
            UnavailableError: It cannot be installed or started.
        """
        launch = self.launch(port)
        return running(launch.command, port, env=launch.env, folder=launch.folder)


def ours(
    models: Path, model: str = "lstm-128", *options: str, name: str = "recurra", outputs: Sequence[str] = ()
) -> Contender:
    """`recurra serve`, as shipped; `outputs` are those that each step asks for by name."""
    return Contender(name, Recurra(model, outputs), _serve(models, *options))


def ours_openinference(models: Path, model: str = "lstm-128") -> Contender:
    """`recurra serve`, as shipped, spoken to in the Open Inference Protocol."""
    dialect = OpenInference("stream", wrapped=True, model=model)
    return Contender(OPEN_INFERENCE, dialect, _serve(models))


def echo() -> Contender:
    """The bare grpc.aio server."""
    return Contender("grpc.aio echo", Recurra(), _module("benchmarks.servers.echo"), checked=False)


def by_hand(model: Path, *, threads: bool) -> Contender:
    """The hand-written servers."""
    name = "by hand, grpcio threads" if threads else "by hand, grpc.aio"
    arguments = ["--model", str(model.absolute()), *(["--threads"] * threads)]
    return Contender(name, Recurra(), _module("benchmarks.servers.by_hand", *arguments))


def _serve(models: Path, *options: str) -> Callable[[int], Launch]:
    recurra = Path(sys.executable).with_name("recurra")

    def launch(port: int) -> Launch:
        return Launch(
            [recurra, "serve", "--models", models, "--port", str(port), "--metrics-port", str(free_port()), *options]
        )

    return launch


def _module(module: str, *arguments: str) -> Callable[[int], Launch]:
    return lambda port: Launch([sys.executable, "-m", module, "--port", str(port), *arguments])
