"""ONNX's own test cases of RNN, GRU and LSTM, cut into steps and streamed through a server."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from recurra_client import BlockingClient, connect
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.verification import advice, checks_of

from tests.support.server import running_server

STREAMED = [
    *("simple_rnn_defaults", "simple_rnn_with_initial_bias", "rnn_seq_length", "simple_rnn_reverse"),
    *("gru_defaults", "gru_with_initial_bias", "gru_seq_length", "gru_reverse"),
    *("lstm_defaults", "lstm_with_initial_bias", "lstm_with_peepholes", "lstm_reverse"),
]
# Half of their answers come from the future: no server can stream them.
LOOK_AHEAD = ["simple_rnn_bidirectional", "gru_bidirectional", "lstm_bidirectional"]
# `layout` = 1 is not in ONNX Runtime.
REFUSED = ["simple_rnn_batchwise", "gru_batchwise", "lstm_batchwise"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, as a model repository."""
    root = tmp_path_factory.mktemp("cases")
    script = Path(__file__).with_name("conformance_cases.py")
    writers = [subprocess.Popen([sys.executable, script, operator, root]) for operator in ("RNN", "GRU", "LSTM")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    return root


@pytest.fixture(scope="module")
def client(cases: Path) -> Iterator[BlockingClient]:
    """A connection to a server with all of them."""
    with running_server(cases) as server, connect(server.target) as client:
        for name in REFUSED:
            assert f"serving {name} " not in server.output
        assert server.output.count("model_not_loaded") == len(REFUSED)
        yield client


def test_no_case_is_forgotten(cases: Path) -> None:
    assert sorted(path.name for path in cases.iterdir()) == sorted([*STREAMED, *LOOK_AHEAD, *REFUSED])


@pytest.mark.e2e
@pytest.mark.parametrize("name", STREAMED)
def test_a_case_streamed_step_by_step_ends_where_onnx_says(client: BlockingClient, cases: Path, name: str) -> None:
    case: dict[str, NDArray[Any]] = dict(np.load(cases / name / "case.npz"))
    steps, rows, _ = case["x"].shape
    begin = {key: value.astype(np.float32) for key, value in case.items() if key.startswith("initial")}
    for row in range(rows):
        given = {key: value[:, row] for key, value in begin.items()}
        with client.session(name, initial_states=given) as session:
            answers = [session.step({"X": case["x"][step, row]}) for step in range(steps)]
        np.testing.assert_allclose(answers[-1]["Y"], case["Y_h"][:, row], rtol=1e-3, atol=1e-7)
        if "Y_c" in case:
            np.testing.assert_allclose(answers[-1]["cell"], case["Y_c"][:, row], rtol=1e-3, atol=1e-7)
        if "Y" in case:  # of a reverse case, the last step is the first of the sequence
            streamed = np.stack([answer["Y"] for answer in answers])[::-1]
            np.testing.assert_allclose(streamed, case["Y"][:, :, row], rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", LOOK_AHEAD)
def test_a_case_that_looks_ahead_is_found(cases: Path, name: str) -> None:
    found = advice(checks_of(OnnxRuntime(cases / name / "1" / "model.onnx")))
    assert any("it looks ahead" in one for one in found)
