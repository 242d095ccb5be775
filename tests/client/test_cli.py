"""The command line as a whole: help, settings, one-line errors, exit codes."""

import os
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from cyclopts import App
from recurra_client.cli import COMMANDS, build_app

from tests.client.conftest import RECURRA, Run
from tests.support.server import ServerProcess


def in_process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_lists_every_command_in_order_with_a_line(recurra: Run) -> None:
    code, out, err = recurra("--help")
    assert (code, err) == (0, "")
    places = [out.index(f"│ {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert all(" ".join(command.help.split()[:4]) in out for command in COMMANDS.values())
    assert {entry.name for entry in entry_points(group="recurra.commands")} == set(COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from recurra_client.cli import run; run(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    )
    loaded = set(in_process(code).stderr.split())
    assert "recurra_client.cli" in loaded
    assert not loaded & {"torch", "onnx", "onnxruntime", "matplotlib", "recurra_server.cli", "recurra_training.cli"}


def test_version(recurra: Run) -> None:
    assert recurra("--version") == (0, f"recurra {version('recurra')}\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["srve"], "recurra: there is no command 'srve'; did you mean 'serve'?"),
        (["models", "--sever", "x"], "recurra: Unknown option: --sever. Did you mean --server?"),
        (["stream"], "requires an argument"),
        (["stream", "counter", "--truht", "x"], "recurra: Unknown option: --truht."),
        (["stream", "counter", "--limit", "0"], "--limit"),
        (["sessions", "opne"], "opne"),
        (["bench", "--api", "telegraph"], "telegraph"),
    ],
)
def test_a_mistake_in_the_usage_is_one_line_and_exit_code_2(recurra: Run, arguments: list[str], says: str) -> None:
    code, out, err = recurra(*arguments)
    assert (code, out) == (2, "")
    assert says in err
    assert err.startswith("recurra: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["models"], ["sessions", "list"], ["sessions", "get", "x"], ["stream", "m", "f.csv"], ["bench", "m"]]
)
def test_no_server_is_one_line_and_exit_code_1(recurra: Run, arguments: list[str]) -> None:
    code, out, err = recurra(*arguments, "--server", "127.0.0.1:1")
    assert (code, out) == (1, "")
    assert err.startswith("recurra: cannot reach 127.0.0.1:1: ")
    assert err.count("\n") == 1


def test_a_missing_extra_is_named() -> None:
    code = "import sys; sys.modules['onnxruntime'] = None; from recurra_client.cli import run; sys.exit(run(['serve']))"
    ended = in_process(code)
    assert ended.returncode == 1
    assert ended.stderr == "recurra: serve needs the server extra: pip install '.[server]' in Recurra's folder\n"


def test_a_bug_is_one_line_too_and_its_trace_is_had_on_request() -> None:
    code = (
        "import sys; from recurra_client.cli import common, run\n"
        "def broken(*_, **__): raise KeyError('lost')\n"
        "common.Client = broken; sys.exit(run(['models']))"
    )
    ended = in_process(code)
    assert ended.returncode == 1
    assert ended.stderr == "recurra: KeyError: 'lost' (RECURRA_DEBUG=1 shows where)\n"
    os.environ["RECURRA_DEBUG"] = "1"
    try:
        assert "Traceback" in in_process(code).stderr
    finally:
        del os.environ["RECURRA_DEBUG"]


def test_flags_come_before_the_environment_and_that_before_the_file(
    recurra: Run, monkeypatch: pytest.MonkeyPatch, server: ServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "recurra.toml").write_text('[models]\nserver = "127.0.0.1:2"\n')
    assert "127.0.0.1:2:" in recurra("models")[2]
    (tmp_path / "other.toml").write_text('[models]\nserver = "127.0.0.1:3"\n')
    monkeypatch.setenv("RECURRA_CONFIG", "other.toml")
    assert "127.0.0.1:3:" in recurra("models")[2]
    monkeypatch.setenv("RECURRA_SERVER", "127.0.0.1:4")
    assert "127.0.0.1:4:" in recurra("models")[2]
    assert recurra("models", "--server", server.target)[0] == 0


def test_where_a_server_runs_its_settings_are_nobody_elses() -> None:
    """A command run in the environment of `serve` must not take its certificate, say, for one of its own."""
    app = build_app()

    def settings(command: App) -> set[str]:
        own = command.assemble_argument_collection() if command.default_command is not None else ()
        return {name for argument in own for name in argument.names}.union(
            *(settings(command[name]) for name in command if not name.startswith("-"))
        )

    served = settings(app["serve"])
    assert "--tls-cert" in served
    shared = {name: served & settings(app[name]) for name in COMMANDS if name != "serve"}
    # Positions; the repository; threads of a computation; what its models may use.
    alike = {"*", "--models", "--threads", "--no-threads", "--operators"}
    assert {name: both - alike for name, both in shared.items() if both - alike} == {}


def test_a_pipe_that_is_closed_is_no_failure(server: ServerProcess) -> None:
    command = f"'{RECURRA}' models --json --server {server.target} | true"
    ended = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
