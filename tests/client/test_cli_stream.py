"""`recurra stream`: files and pipes through a real server."""

import csv
import io
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from recurra_client import connect

from tests.client.conftest import CLASSES, RECURRA, SENSORS, Run
from tests.support.server import ServerProcess

PNG = b"\x89PNG"


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


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


def test_an_open_session_is_gone_on_with_and_left_open(recurra: Run, server: ServerProcess, tmp_path: Path) -> None:
    np.save(tmp_path / "ones.npy", np.ones((5, 1)))
    at = ("--server", server.target)
    recurra("sessions", "open", "counter", "--id", "going-on", *at)
    streamed = ("stream", "counter", "ones.npy", "--session", "going-on", "--output", "-", *at)
    for begun in (0, 5):
        code, out, _ = recurra(*streamed)
        assert code == 0
        wanted = range(begun + 1, begun + 6)  # the counter counts on, and so do the steps
        assert [(int(row["step"]), float(row["y"])) for row in rows_of(out)] == [(n, float(n)) for n in wanted]
    assert recurra("sessions", "close", "going-on", *at)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("counter", "1.npy", "2.npy", "--session", "s"), "goes on with one session, and 2 files were given"),
        (("counter", "1.npy", "--session", "s", "--durability", "sync"), "chosen when a session is opened"),
        (("counter", "1.npy", "--session", "absent"), "absent"),
        (("watch", "1.npy", "--session", "of-counter"), "session of-counter is one of model counter, version 1"),
    ],
)
def test_a_session_that_cannot_be_gone_on_with(
    recurra: Run, server: ServerProcess, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    for k in (1, 2):
        np.save(tmp_path / f"{k}.npy", np.ones((5, 1)))
    with connect(server.target) as client, client.session("counter", session_id="of-counter"):
        code, _, err = recurra("stream", *arguments, "--server", server.target)
    assert code == 1
    assert message in err


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
        for x, total in (("\ufeff5", 5), (2, 7), (-1, 6)):  # some programs begin with a byte order mark
            process.stdin.write(f"{x}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline().split(b",")[3] == str(total).encode()  # before the next is given
        process.stdin.close()
        assert process.wait(timeout=20) == 0
        assert process.stderr is not None
        assert b"stdin: 3 steps" in process.stderr.read()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        pytest.param(b"1\n\xff\n", b"cannot read stdin: 'utf-8' codec", id="not UTF-8"),
        pytest.param(b"1\n" + b"9" * 200_000 + b"\n", b"cannot read stdin: field larger", id="a number without end"),
    ],
)
def test_a_pipe_that_cannot_be_read_ends_the_command_with_a_line(
    server: ServerProcess, lines: bytes, message: bytes
) -> None:
    command = [str(RECURRA), "stream", "counter", "--output", "-", "--server", server.target]
    ended = subprocess.run(command, input=lines, capture_output=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(b"recurra: " + message)


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
    (tmp_path / "empty.npy").write_bytes(b"")
    for name, says in (
        ("nope.csv", "cannot read nope.csv: No such file"),
        ("wide.npy", "wide.npy holds float64 of shape [4, 7], but model watch takes 3 numbers"),
        ("text.npy", "cannot read text.npy"),
        ("empty.npy", "cannot read empty.npy"),
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
