"""The commands about models and sessions, and a real server."""

import json
import re
from pathlib import Path

from recurra_client import connect

from tests.client.conftest import CLASSES, SENSORS, SHOWN, Run
from tests.support.server import ServerProcess, running_server


def test_models_are_listed_and_described(recurra: Run, server: ServerProcess) -> None:
    code, out, _ = recurra("models", "--server", server.target)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["counter", "letters", "lstm", "watch", "watched"]
    _, out, _ = recurra("models", "watched", "--server", server.target)
    assert [line.split()[1] for line in out.splitlines() if "only if asked for by name" in line] == ["double", "entry"]
    _, out, _ = recurra("models", "watch", "--server", server.target)
    assert "float32[3]" in out
    assert all(label in out for label in SENSORS + CLASSES)
    assert "m/s^2" in out
    assert "every 20 ms" in out
    _, out, _ = recurra("models", "counter", "--json", "--server", server.target)
    assert json.loads(out)["inputs"][0]["name"] == "x"
    code, _, err = recurra("models", "nope", "--server", server.target)
    assert code == 1
    assert err.startswith("recurra: there is no model 'nope'")


def test_what_a_server_says_is_shown_and_not_obeyed(recurra: Run, server: ServerProcess) -> None:
    for command in (("models",), ("models", "letters")):
        code, out, _ = recurra(*command, "--server", server.target)
        assert code == 0
        assert SHOWN in out
        assert not {"\x1b", "\x9b", "\u202e"} & set(out)


def test_sessions_are_opened_forked_reset_and_closed(recurra: Run, server: ServerProcess) -> None:
    at = ("--server", server.target)
    assert recurra("sessions", "open", "counter", "--id", "cli", "--idle-timeout", "60", *at)[0] == 0
    with connect(server.target) as client, client.resume("cli") as session:
        session.step([1])
    _, out, _ = recurra("sessions", "fork", "cli", "--id", "cli-2", *at)
    assert out.splitlines()[1].split()[:4] == ["cli-2", "counter", "1", "1"]
    _, out, _ = recurra("sessions", "reset", "cli", "--json", *at)
    assert json.loads(out)["steps"] == "0"
    _, out, _ = recurra("sessions", "list", "--model", "counter", "--json", *at)
    listed = {session["session_id"]: session for session in json.loads(out)}
    assert listed["cli-2"]["steps"] == "1"
    assert listed["cli"]["idle_timeout"] == "60s"
    assert recurra("sessions", "close", "cli", "cli-2", *at)[0] == 0
    code, _, err = recurra("sessions", "get", "cli", *at)
    assert code == 1
    assert err.startswith("recurra: there is no session 'cli'")


def test_a_session_is_exported_to_a_file_and_imported(recurra: Run, server: ServerProcess, tmp_path: Path) -> None:
    at, file = ("--server", server.target), tmp_path / "session.snapshot"
    with connect(server.target) as client, client.session("counter", session_id="saved") as session:
        session.step([3])
        assert recurra("sessions", "export", "saved", str(file), *at) == (0, "", "")
        session.step([10])
        code, out, _ = recurra(
            "sessions", "import", str(file), "--id", "saved-2", "--idle-timeout", "60", "--json", *at
        )
        assert code == 0
        assert json.loads(out)["steps"] == "1"
        with client.resume("saved-2", keep=False) as again:
            assert again.step([1]).tolist() == [4]
        _, out, _ = recurra("sessions", "rewind", "saved", str(file), *at)
        assert out.splitlines()[1].split()[:4] == ["saved", "counter", "1", "1"]
    file.write_bytes(b"nothing")
    code, _, err = recurra("sessions", "import", str(file), *at)
    assert code == 1
    assert err == "recurra: these bytes are not a snapshot of format RCS2\n"
    code, _, err = recurra("sessions", "import", str(tmp_path / "none"), *at)
    assert (code, err) == (1, f"recurra: {tmp_path / 'none'}: No such file or directory\n")


def test_durability_is_chosen_where_sessions_are_opened(
    recurra: Run, models_folder: Path, tmp_path: Path, readings: Path
) -> None:
    with running_server(models_folder, "--store", f"embedded:{tmp_path / 'v'}") as process:
        at = ("--server", process.target)
        for durability in ("ephemeral", "async", "sync"):
            chosen = ("--durability", durability)
            assert recurra("sessions", "open", "counter", "--id", durability, *chosen, *at)[0] == 0
            file = tmp_path / durability
            assert recurra("sessions", "export", durability, str(file), *at)[0] == 0
            _, out, _ = recurra("sessions", "import", str(file), "--id", f"{durability}-2", *chosen, "--json", *at)
            assert json.loads(out)["durability"] == f"DURABILITY_{durability.upper()}"
            assert recurra("stream", "watch", str(readings), *chosen, *at)[0] == 0
            assert recurra("bench", "counter", "--sessions", "2", "--seconds", "0.1", *chosen, *at)[0] == 0
        _, out, _ = recurra("sessions", "list", *at)
        column = [re.split(r"  +", line)[4] for line in out.splitlines()]
        assert column == ["DURABLE", "no", "no", "async 0", "async 0", "sync 0", "sync 0"]
        samples = process.metrics()
        assert (samples.get("recurra_checkpoints_total", outcome="saved") or 0) > 40, "of the SYNC stream alone"
        assert recurra("sessions", "drain", "--grace", "0", *at)[:2] == (
            0,
            f"{process.target} is drained: 4 sessions can go on elsewhere, 2 end with it\n",
        )
        code, _, err = recurra("sessions", "open", "counter", *at)
        assert (code, "shuts down" in err) == (1, True)


def test_a_durability_that_the_server_cannot_give_is_told_in_one_line(recurra: Run, server: ServerProcess) -> None:
    code, _, err = recurra("sessions", "open", "counter", "--durability", "sync", "--server", server.target)
    assert code == 1
    assert err == (
        "recurra: durability SYNC needs a store, and the server has none: start it with --store, or leave "
        "durability unset\n"
    )
