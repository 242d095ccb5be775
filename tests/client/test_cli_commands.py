"""The commands that talk to a server, and a real one."""

import csv
import io
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from recurra.v1 import sessions_pb2
from recurra_client import connect

from tests.client.conftest import CLASSES, SENSORS
from tests.client.test_cli import RECURRA, Run, recurra
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs

__all__ = ["recurra"]  # a fixture

PNG = b"\x89PNG"


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


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


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
    assert err == "recurra: these bytes are not a snapshot of format RCS1\n"
    code, _, err = recurra("sessions", "import", str(tmp_path / "none"), *at)
    assert (code, err) == (1, f"recurra: {tmp_path / 'none'}: No such file or directory\n")


def test_a_csv_file_is_streamed_by_the_models_labels(recurra: Run, server: ServerProcess, readings: Path) -> None:
    code, out, err = recurra(
        "stream", "watch", str(readings), "--truth", "what", "--output", "-", "--server", server.target
    )
    assert code == 0
    rows = rows_of(out)
    with readings.open() as file:
        xs = np.array([[float(row[name]) for name in SENSORS] for row in csv.DictReader(file)])
    with connect(server.target) as client:
        logits = client.predict("watch", xs)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    got = np.array([[float(row[name]) for name in CLASSES] for row in rows])
    np.testing.assert_allclose(got, probabilities, atol=1e-5)
    predicted = [CLASSES[k] for k in probabilities.argmax(axis=1)]
    assert [row["predicted"] for row in rows] == predicted
    assert [int(row["step"]) for row in rows] == list(range(1, 41))
    accuracy = np.mean([p == row["true"] for p, row in zip(predicted, rows, strict=True)])
    assert f"readings.csv: 40 steps, accuracy {accuracy:.1%}, p50" in err
    assert "p99 latency" in err


@pytest.mark.parametrize("options", [[], ["--chunk", "7"], ["--rate", "400"], ["--rate", "real", "--limit", "9"]])
def test_an_npy_file_is_streamed(recurra: Run, server: ServerProcess, tmp_path: Path, options: list[str]) -> None:
    np.save(tmp_path / "ones.npy", np.ones((30, 3)))
    at = ("--server", server.target)
    code, out, _ = recurra("stream", "watch", "ones.npy", "--output", "out.csv", *options, *at)
    assert code == 0
    count = 9 if "--limit" in options else 30
    assert f"ones.npy: {count} steps" in out
    rows = rows_of((tmp_path / "out.csv").read_text())
    assert len(rows) == count
    with connect(server.target) as client:
        expected = client.predict("watch", np.ones((count, 3))).argmax(axis=1)
    assert [row["predicted"] for row in rows] == [CLASSES[k] for k in expected]


@pytest.mark.parametrize(("rate", "steps", "seconds"), [("10", 11, 1.0), ("real", 26, 0.5)])
def test_steps_are_paced(
    recurra: Run, server: ServerProcess, tmp_path: Path, rate: str, steps: int, seconds: float
) -> None:
    np.save(tmp_path / "ones.npy", np.ones((steps, 3)))
    _, out, _ = recurra("stream", "watch", "ones.npy", "--rate", rate, "--server", server.target)
    taken = re.search(r"steps in ([\d.]+) s", out)
    assert taken is not None
    assert float(taken[1]) >= seconds


@pytest.mark.parametrize("options", [[], ["--parallel"]])
def test_each_file_is_a_session_of_its_own(
    recurra: Run, server: ServerProcess, tmp_path: Path, options: list[str]
) -> None:
    for k in (1, 2, 3):
        np.save(tmp_path / f"{k}.npy", np.full((5, 1), k))
    arguments = ["counter", "1.npy", "2.npy", "3.npy", *options, "--output", "-", "--server", server.target]
    _, out, err = recurra("stream", *arguments)
    for k in (1, 2, 3):
        sums = [float(row["y"]) for row in rows_of(out) if row["file"] == f"{k}.npy"]
        assert sums == [k * n for n in range(1, 6)]
    assert "15 steps in" in err


def test_lines_of_a_pipe_are_stepped_as_they_come(server: ServerProcess) -> None:
    command = [str(RECURRA), "stream", "counter", "--output", "-", "--server", server.target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"file,step,true,y,latency_ms\n"
        for x, total in ((5, 5), (2, 7), (-1, 6)):
            process.stdin.write(f"{x}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline().split(b",")[3] == str(total).encode()  # before the next is given
        process.stdin.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert b"stdin: 3 steps" in process.stderr.read()


def test_truth_of_values_gives_an_error_figure(recurra: Run, server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "values.csv").write_text("x,wanted\n1,2\n1,3\n1,\n")
    _, out, _ = recurra("stream", "counter", "values.csv", "--truth", "wanted", "--server", server.target)
    assert "RMSE 1," in out


def test_a_picture_is_drawn(recurra: Run, server: ServerProcess, readings: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    at = ("--server", server.target)
    code, out, _ = recurra("stream", "watch", str(readings), "--truth", "what", "--plot", "classes.png", *at)
    assert code == 0
    assert "drawn into classes.png" in out
    np.save(tmp_path / "ones.npy", np.ones((5, 1)))
    assert recurra("stream", "counter", "ones.npy", "--plot", "values.png", *at)[0] == 0
    assert (tmp_path / "classes.png").read_bytes()[:4] == (tmp_path / "values.png").read_bytes()[:4] == PNG


def test_a_terminal_sees_it_live(server: ServerProcess, readings: Path) -> None:
    command = f"'{RECURRA}' stream watch '{readings}' --truth what --server {server.target}"
    ended = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        env={"COLUMNS": "110", "LINES": "40", "TERM": "xterm-256color", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "step 40 of 40" in ended.stdout
    assert "◀ predicted" in ended.stdout
    assert "accuracy" in ended.stdout


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        (
            "a,b\n1,2\n",
            [],
            "readings.csv has 2 columns of numbers, but model watch takes 3 numbers a step (ax, ay, gx)",
        ),
        ("ax,ay,gx\n1,2,3\n1,,3\n", [], "readings.csv line 3: column ay holds '', expected a number"),
        ("ax,ay,gx\n", [], "readings.csv holds no steps"),
        ("ax,ay,gx\n1,2,3\n", ["--truth", "w"], "readings.csv has no column 'w'; it has ax, ay, gx"),
        ("ax,ay,gx,w\n1,2,3,jump\n", ["--truth", "w"], "the truth 'jump' is not one of curl, raise, press"),
        ("ax,ay,gx\n1,nan,3\n", [], "input 'x' holds NaN or infinity"),
        ("ax,ay,gx\n1,2,3\n", ["--rate", "fast"], "--rate is 'fast', expected steps a second, or 'real'"),
        ("ax,ay,gx\n1,2,3\n", ["--output", "no/such/folder.csv"], "cannot write no/such/folder.csv"),
        ("ax,ay,gx\n1,2,3\n", ["--plot", "no/such/folder.png"], "cannot write no/such/folder.png"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_a_line(
    recurra: Run, server: ServerProcess, tmp_path: Path, content: str, options: list[str], says: str
) -> None:
    (tmp_path / "readings.csv").write_text(content)
    code, _, err = recurra("stream", "watch", "readings.csv", *options, "--server", server.target)
    assert code == 1
    assert err.startswith(f"recurra: {says}")
    assert err.count("\n") == 1


def test_files_that_are_not_there_or_do_not_fit_are_told(recurra: Run, server: ServerProcess, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.ones((4, 7)))
    (tmp_path / "text.npy").write_text("no array")
    for name, says in (
        ("nope.csv", "cannot read nope.csv: No such file"),
        ("wide.npy", "wide.npy holds float64 of shape [4, 7], but model watch takes 3 numbers"),
        ("text.npy", "cannot read text.npy"),
    ):
        code, _, err = recurra("stream", "watch", name, "--server", server.target)
        assert code == 1
        assert err.startswith(f"recurra: {says}")
        assert err.count("\n") == 1


def test_without_matplotlib_a_picture_is_refused_before_anything_is_streamed(
    recurra: Run, server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, out, err = recurra("stream", "counter", "x.npy", "--plot", "x.png", "--server", server.target)
    assert (code, out, err) == (1, "", "recurra: --plot needs matplotlib: pip install matplotlib\n")


@pytest.mark.parametrize(
    "options", [[], ["--api", "unary"], ["--api", "batch"], ["--pace", "20ms"], ["--chunk", "4"], ["--chunk", "3000"]]
)
def test_bench_counts_every_step_that_the_server_answered(
    recurra: Run, server: ServerProcess, options: list[str]
) -> None:
    before = server.metrics().get("recurra_timesteps_total", model="lstm", version="1") or 0
    arguments = ["--sessions", "1,3", "--seconds", "0.4", "--json", *options, "--server", server.target]
    code, out, err = recurra("bench", "lstm", *arguments)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [result["sessions"] for result in report["results"]] == [1, 3]
    measured = sum(result["steps_per_second"] for result in report["results"]) * 0.4
    answered = (server.metrics().get("recurra_timesteps_total", model="lstm", version="1") or 0) - before
    assert 0 < measured <= answered  # that of the warm-up is not measured
    for result in report["results"]:
        assert result["errors"] == {}
        assert 0 < result["p50_seconds"] <= result["p99_seconds"] <= result["longest_seconds"]
        assert (result["late_p99_seconds"] is not None) == (options == ["--pace", "20ms"])
        if options == ["--pace", "20ms"]:
            assert result["steps_per_second"] <= 1.2 * result["sessions"] / 0.02
    with connect(server.target) as client:
        assert client.sessions.count("lstm") == 0


@pytest.fixture(scope="module")
def workers(models_folder: Path) -> Iterator[ServerProcess]:
    with running_server(models_folder, "--workers", "2") as process:
        yield process


@pytest.fixture(scope="module")
def full(models_folder: Path) -> Iterator[ServerProcess]:
    with running_server(models_folder, "--max-sessions", "5") as process:
        yield process


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


@pytest.mark.parametrize("api", ["stream", "unary", "batch"])
def test_bench_asks_for_outputs_by_name(recurra: Run, server: ServerProcess, api: str) -> None:
    arguments = ["--api", api, "--sessions", "1", "--seconds", "0.2", "--json", "--server", server.target, "--outputs"]
    code, out, _ = recurra("bench", "lstm", *arguments, "y")
    assert (code, json.loads(out)["results"][0]["errors"]) == (0, {})
    code, _, err = recurra("bench", "watched", *arguments, "y,z")
    assert (code, err) == (1, "recurra: model watched has no output 'z'; it has double, y, entry\n")


def test_bench_shares_the_sessions_out_among_processes(recurra: Run, server: ServerProcess) -> None:
    arguments = ["--sessions", "3", "--seconds", "0.3", "--processes", "2", "--server", server.target]
    code, out, err = recurra("bench", "counter", *arguments)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("counter version 1: stream, closed loop")
    assert out.splitlines()[4].split()[0] == "3"


@pytest.mark.parametrize("api", ["stream", "unary", "batch"])
def test_bench_keeps_each_session_where_it_was_opened(recurra: Run, workers: ServerProcess, api: str) -> None:
    """With several workers, a session lives in the one that its connection was given to."""
    counter = {"model": "counter", "version": "1"}
    before = workers.metrics().get("recurra_sessions_opened_total", **counter) or 0
    arguments = ["--api", api, "--sessions", "12", "--seconds", "0.3", "--json", "--server", workers.target]
    code, out, err = recurra("bench", "counter", *arguments)
    assert (code, err) == (0, "")
    (result,) = json.loads(out)["results"]
    assert (result["refused"], result["errors"]) == ({}, {})
    assert result["steps_per_second"] > 0
    samples = workers.metrics()
    assert samples.get("recurra_sessions_opened_total", **counter) == before + 12
    assert samples.get("recurra_sessions", **counter) == 0


@pytest.mark.parametrize("options", [[], ["--pace", "20ms"]])
def test_bench_goes_on_with_the_sessions_that_a_full_server_takes(
    recurra: Run, full: ServerProcess, options: list[str]
) -> None:
    arguments = ["counter", "--sessions", "7", "--seconds", "0.3", *options, "--server", full.target]
    code, out, err = recurra("bench", *arguments, "--json")
    assert (code, err) == (0, "")
    (result,) = json.loads(out)["results"]
    assert (result["refused"], result["errors"]) == ({"CAPACITY": 2}, {})
    code, out, err = recurra("bench", *arguments)
    assert out.splitlines()[4].split()[:3] == ["7", "2", "CAPACITY"]
    stubs = Stubs(full.target)
    held = [stubs.sessions.OpenSession(sessions_pb2.OpenSessionRequest(model="counter")) for _ in range(5)]
    code, out, err = recurra("bench", *arguments)
    assert (code, out) == (1, "")
    assert err == "recurra: 7 sessions: the server refuses a session (CAPACITY)\n"
    for opened in held:
        stubs.sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=opened.session.session_id))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name the model to load: counter, letters, lstm, watch"),
        (["counter", "--sessions", "0"], "--sessions is '0'"),
        (["counter", "--pace", "fast"], "--pace is 'fast', expected a time such as 32ms"),
        (["nope"], "there is no model 'nope'"),
    ],
)
def test_what_bench_cannot_do_is_told_in_a_line(
    recurra: Run, server: ServerProcess, arguments: list[str], says: str
) -> None:
    code, out, err = recurra("bench", *arguments, "--server", server.target)
    assert (code, out) == (1, "")
    assert err.startswith(f"recurra: {says}")
    assert err.count("\n") == 1


def test_ctrl_c_ends_with_the_figures_so_far(server: ServerProcess, tmp_path: Path) -> None:
    np.save(tmp_path / "ones.npy", np.ones((1000, 1)))
    command = [str(RECURRA), "stream", "counter", str(tmp_path / "ones.npy"), "--rate", "20", "--output", "-"]
    with subprocess.Popen(
        [*command, "--server", server.target], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        told = process.stderr.read()
    assert "ones.npy" in told
    assert "Traceback" not in told
