"""The machinery of the benchmarks, not their figures."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import contenders, plots, report
from benchmarks.check import check_answers
from benchmarks.client import ClientProcess
from benchmarks.dialects import Array, Recurra
from benchmarks.models import LocalModel, publish
from benchmarks.parts import durability, paced, steps
from benchmarks.peers.dialects import Mosec, OpenInference, TorchServe
from benchmarks.peers.protobuf import field, fields
from benchmarks.processes import cpu_seconds, family, free_port, resident_bytes, running
from benchmarks.runs import Effort, Findings, Spread, compare
from benchmarks.venvs import UnavailableError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(tmp_path_factory.mktemp("models"), "lstm-128", 128)


def test_ours_and_the_echo_are_measured_in_turn(model: Path, tmp_path: Path) -> None:
    findings = Findings()
    pair = [contenders.ours(model.parents[2]), contenders.echo()]
    with ClientProcess() as client:
        compare("steps", pair, (1, 3), model, Effort(2, 1.0), client, findings, together=True)
    assert findings.unavailable == {}
    order = [(sample.round, sample.name, sample.case) for sample in findings.samples]
    names = ["recurra", "grpc.aio echo"]
    assert order == [(turn, name, case) for turn in range(2) for case in ("1", "3") for name in names]
    for sample in findings.samples:
        values = sample.values
        assert values["errors"] == 0
        assert values["steps_per_second"] > 0
        assert 0 < values["p50"] <= values["p99"]
        assert values["server_cpu_per_step"] > 0
    page = report.markdown(findings, {"processor": "any"}, "how")
    assert "| recurra | 1 | " in page
    assert "recurra / grpc.aio echo, 3: " in page
    assert "p50 of recurra - grpc.aio echo, 3: " in page
    assert [path.name for path in plots.draw(findings, tmp_path)] == ["steps.png"]


def test_whoever_answers_something_else_is_not_measured(model: Path) -> None:
    """The echo answers zeros."""
    findings = Findings()
    liar = contenders.Contender("liar", Recurra(), contenders.echo().launch)
    with ClientProcess() as client:
        compare("steps", [liar], (1,), model, Effort(1, 0.1), client, findings, together=False)
    assert findings.samples == []
    assert findings.unavailable["steps: liar"].startswith("answers differ from the model's by up to ")


def test_a_server_that_does_not_start_is_told_with_its_last_words() -> None:
    program = "import sys; print('going'); sys.exit('SomeError: no such luck')"
    with (
        pytest.raises(UnavailableError, match="ended at its start: SomeError: no such luck"),
        running([sys.executable, "-c", program], free_port()),
    ):
        pass


def test_processor_time_and_memory_are_those_of_a_process_and_its_children() -> None:
    program = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'while True: pass']);"
        "print('x', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        members = family(process.pid)
        try:
            assert len(members) == 2
            before = cpu_seconds(members)
            while cpu_seconds(members) < before + 0.05:  # the child is busy, its parent is not
                pass
            assert cpu_seconds([process.pid]) < cpu_seconds(members)
            assert resident_bytes(members) > resident_bytes([process.pid]) > 1 << 20
        finally:
            for pid in reversed(members):
                subprocess.run(["kill", "-9", str(pid)], check=False)


def test_a_model_of_two_layers_has_the_states_of_both(tmp_path: Path) -> None:
    local = LocalModel(publish(tmp_path, "deep", 8, layers=2))
    x = _random(3, 4)
    whole, _ = local.run(x, local.start(3))
    states = local.start(3)
    assert set(states) == {"h_0", "c_0", "h_1", "c_1"}
    for step in range(4):
        y, states = local.run(x[:, step : step + 1], states)
        assert abs(y[:, 0] - whole[:, step]).max() < 1e-6


def _random(rows: int, steps: int) -> Array:
    return np.random.default_rng(0).standard_normal((rows, steps, 16)).astype(np.float32)


def test_spread_is_the_median_with_the_lowest_and_highest() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)


def test_protobuf_fields_are_read_as_they_were_written() -> None:
    message = field(1, "name") + field(2, 300) + field(15, b"\0" * 200) + field(16, "b") + field(1, "again")
    assert fields(message) == {1: [b"name", b"again"], 15: [b"\0" * 200], 16: [b"b"]}


def test_the_dialects_of_the_peers_hold_the_step_and_read_the_answer() -> None:
    x, y = _random(1, 1)[0, 0], _random(1, 1)[0, 0, :1]
    triton = OpenInference("stream", wrapped=True)
    assert fields(triton.encode(7, x, first=True))[7] == [x.tobytes()]
    assert triton.encode(7, x, first=True) != triton.encode(7, x, first=False)
    assert triton.decode(field(2, field(6, y.tobytes()))) == y
    with pytest.raises(ConnectionError, match="no such model"):
        triton.decode(field(1, "no such model"))
    assert OpenInference("unary").decode(field(5, field(5, field(6, y.tobytes())))) == y
    assert fields(TorchServe().encode(7, x, first=False))[4] == [b"7"]
    assert TorchServe().decode(field(1, y.tobytes())) == y
    assert Mosec().encode(7, x, first=False) == (7).to_bytes(8, "little") + x.tobytes()


@given(knee=st.integers(0, 6000), first=st.sampled_from([1, 32, 256]), fineness=st.floats(0, 0.5))
def test_the_knee_is_found_in_few_tries(knee: int, first: int, fineness: float) -> None:
    tried: list[int] = []

    def kept(sessions: int) -> bool:
        tried.append(sessions)
        return sessions <= knee

    found = paced.most(kept, first, fineness)
    assert found <= knee
    assert knee - found <= max(1, found * fineness)
    assert len(tried) <= 26
    assert max(tried) <= max(first, 2 * knee)


def test_below_and_beyond_the_knee_are_told_and_drawn(tmp_path: Path) -> None:
    findings = Findings()
    for sessions, ms in ((200, 40), (50, 2), (100, 9)):
        values = {"p50": ms / 2e3, "p99": ms / 1e3, "errors": 0, "refused": 0, "unanswered": 0}
        findings.add(paced.PART, "lstm-128", sessions, 0, values)
    findings.add(paced.KNEE, "lstm-128", "the knee", 0, {"sessions": 100})
    for case, sessions, refused in zip(paced.CASES, (80, 130, 130), (0, 0, 33), strict=True):
        findings.add(paced.AROUND, "lstm-128", case, 0, {**values, "sessions": sessions, "refused": refused})
    page = report.markdown(findings, {}, "how")
    assert page.index("| lstm-128 | 50 |") < page.index("| lstm-128 | 100 |") < page.index("| lstm-128 | 200 |")
    assert "| lstm-128 | the knee | 100 |" in page
    assert f"| lstm-128 | {paced.CASES[2]} | 130 | 33 | 0 |" in page
    assert [path.name for path in plots.draw(findings, tmp_path)] == ["paced.png"]


def test_what_durability_costs_is_told_in_round_trips() -> None:
    findings = Findings()
    for kind, ms in (("EPHEMERAL", 1.0), ("ASYNC", 1.1), ("SYNC", 1.5)):
        findings.add(durability.COST, kind, 64, 0, {"steps_per_second": 1e3 / ms, "p50": ms / 1e3})
    findings.add(durability.TRIP, "a bare store round trip", 64, 0, {"p50": 0.2e-3})
    findings.add(durability.SIZE, "LSTM-128", "a session", 0, {"state_bytes": 1024, "checkpoint_bytes": 1204})
    for others, ms in ((10, 2), (100_000, 3)):
        findings.add(durability.TAKE_OVER, "recurra", others, 0, {"p50": ms / 1e3})
    page = report.markdown(findings, {}, "how")
    assert "* ASYNC / EPHEMERAL, 64: 0.91 (0.91-0.91) of the steps a second" in page
    assert "* p50 of SYNC - EPHEMERAL, 64: 2.5 (2.5 to 2.5) bare store round trips" in page
    assert "| LSTM-128 | a session | 1,024 | 1,204 |" in page
    assert "* beside 100,000 / beside 10: 1.50 of the p50 (medians)" in page


def test_at_a_glance_all_servers_are_ranked(tmp_path: Path) -> None:
    findings = Findings()
    for name, rate in (("slow", 100.0), ("recurra", 400.0)):
        for case in ("1", "8", "64"):
            values = {"steps_per_second": rate, "p50": 1 / rate, "p99": 2 / rate}
            findings.add(steps.PEERS, name, case, 0, values)
    assert "recurra / slow, 64: 4.00 (4.00-4.00) of the steps a second" in report.markdown(findings, {}, "how")
    assert [path.name for path in plots.draw(findings, tmp_path)] == ["at_a_glance.png", "peers.png"]


def test_parts_are_chosen_on_the_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--results", str(tmp_path), "--only"]
    unknown = subprocess.run([*command, "limit,warp"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 1
    assert unknown.stderr.startswith("benchmarks: --only knows limit, bulk,")
    subprocess.run([*command, "telemetry,workers,outputs,chunks"], capture_output=True, text=True, check=True)
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "results.json").read_text())
    assert {sample["part"] for sample in found["samples"]} >= {"chunks", "outputs"}
    assert "load average" in found["machine"]
    assert "ONNX Runtime alone" in (folder / "results.md").read_text()


@pytest.mark.parametrize("ours", [contenders.ours, contenders.ours_openinference])
def test_answers_of_our_server_are_those_of_the_model(
    model: Path, ours: Callable[[Path], contenders.Contender]
) -> None:
    port = free_port()
    server = ours(model.parents[2])
    with server.running(port):
        check_answers(f"127.0.0.1:{port}", server.dialect, LocalModel(model))
