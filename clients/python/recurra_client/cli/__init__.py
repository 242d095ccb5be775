"""The command line `recurra`.

Each part of Recurra offers its commands in the entry-point group `recurra.commands`; the module of a
command is imported only when it is called, so that the client needs neither the server nor PyTorch.
"""

import difflib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Final, NamedTuple

from cyclopts import App
from cyclopts.config import Env, Toml
from cyclopts.exceptions import CycloptsError

from recurra_client.cli.plain import plain
from recurra_client.cli.usererror import UserError

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130


class Command(NamedTuple):
    """What must be known of a command before its module is imported."""

    help: str
    extra: str = ""
    """The package extra that it needs."""


# In the order of the help: from training a model to watching it at work.
COMMANDS: Final[dict[str, Command]] = {
    "train": Command("Train a model on one of the tasks.", "training"),
    "export": Command("Export a trained model to ONNX, verify it and publish it.", "training"),
    "verify": Command("Prove that a model answers alike step by step, in chunks and whole.", "server"),
    "inspect": Command("Show what an ONNX file takes, answers and remembers, and a model.yaml for it.", "server"),
    "serve": Command("Serve the models of a repository over gRPC.", "server"),
    "health": Command("Tell whether a server serves."),
    "models": Command("List the models of a server, or describe one."),
    "sessions": Command("List, open, reset, close, fork, export and import the sessions of a server."),
    "stream": Command("Feed CSV, NPY or stdin through a model, and watch what it predicts."),
    "top": Command("Watch a server live: sessions, models, rates and latencies."),
    "bench": Command("Measure steps a second and latency of a server under load."),
}


def build_app() -> App:
    """The command line, with the commands that are installed.

    A setting is looked up in the flags, then in the environment (RECURRA_PORT), then in recurra.toml (`port` in the
    table of the command).
    """
    app = App(
        name="recurra",
        help="Recurrent networks served the way they work: the server remembers, so a caller sends only the next step.",
        version=f"recurra {importlib.metadata.version('recurra')}",
        config=[
            Env("RECURRA_", command=False),
            Toml(os.environ.get("RECURRA_CONFIG", "recurra.toml"), use_commands_as_keys=True),
        ],
        help_format="plaintext",
    )
    order = list(COMMANDS)
    for entry in importlib.metadata.entry_points(group="recurra.commands"):
        position = order.index(entry.name) if entry.name in order else len(order)
        app.command(entry.value, name=entry.name, help=COMMANDS.get(entry.name, Command("")).help, sort_key=position)
    return app


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; a failure is one line on stderr (RECURRA_DEBUG=1: its trace)."""
    command = arguments[0] if arguments else ""
    try:
        app = build_app()
        _check_command(app, command)
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        return 0
    except CycloptsError as error:
        return _fail(str(error), EXIT_USAGE)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever read our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("RECURRA_DEBUG"):
            raise
        return _fail(_explain(command, error), EXIT_FAILURE)


def main() -> None:
    """The console script."""
    sys.exit(run(sys.argv[1:]))


def _check_command(app: App, command: str) -> None:
    """Cyclopts would import all commands to say that one is unknown."""
    if command and not command.startswith("-") and command not in app:
        meant = difflib.get_close_matches(command, COMMANDS, 1)
        raise CycloptsError(f"there is no command {command!r}" + (f"; did you mean {meant[0]!r}?" if meant else ""))


def _explain(command: str, error: Exception) -> str:
    """The failure of a command in one line."""
    if isinstance(error, ImportError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # Cyclopts wraps what a command's module raises
    extra = COMMANDS[command].extra if command in COMMANDS else ""
    if isinstance(error, ImportError) and extra and not (error.name or "").startswith("recurra"):
        return f"{command} needs the {extra} extra: pip install '.[{extra}]' in Recurra's folder"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    known = getattr(error, "message", "") or (str(error) if isinstance(error, OSError | UserError) else "")
    if getattr(error, "reason", "") == "UNAUTHENTICATED":
        known += "; on the command line: --token-file, or RECURRA_TOKEN"
    return known or f"{type(error).__name__}: {error} (RECURRA_DEBUG=1 shows where)"


def _fail(message: str, code: int) -> int:
    print("recurra: " + plain(" ".join(message.split())), file=sys.stderr)
    return code
