"""Models that others exported, through the wire: in streams, chunks, batches of rows, forks and whole."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from recurra.v1 import inference_pb2, tensor_pb2
from recurra_client import BlockingClient, InputError, connect
from recurra_client.tensors import numpy_dtype

from tests.support import foreign
from tests.support.fuzzing import CASES
from tests.support.reference import step_by_step
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs, error_info

pytestmark = pytest.mark.e2e
REASONS = (
    *("INPUT_NAME", "INPUT_DTYPE", "INPUT_SHAPE", "INPUT_NOT_FINITE", "INPUT_REFUSED"),
    *("STATE_NOT_FINITE", "CHUNK_LENGTH"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them."""
    root = tmp_path_factory.mktemp("models")
    for name, model in foreign.ALL.items():
        model.publish(root, name.replace(" ", "-"))
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    """A server with them."""
    with running_server(root, "--max-sessions", "200") as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[BlockingClient]:
    """A connection."""
    with connect(server.target) as client:
        yield client


def test_what_is_run_one_by_one_is_said_so(client: BlockingClient, server: ServerProcess) -> None:
    alone = {model.name for model in client.models() if model.max_batch_size == 1}
    assert alone == {"no-batch", "fixed", "quantised"}
    for name in alone:
        assert f"serving {name} version 1 (8 bytes of state a session, sessions run one by one)" in server.output


@pytest.mark.parametrize("name", [name.replace(" ", "-") for name in foreign.ALL if name != "constants"])
def test_rows_of_one_message_are_answered_as_steps_alone(client: BlockingClient, root: Path, name: str) -> None:
    """`StepBatch` in blocks, of single steps and of chunks."""
    model, rng = client.model(name), np.random.default_rng(3)
    sessions = [client.session(name).open() for _ in range(3)]
    sent = []
    for lead in ((), (1,), (4,), ()):
        x = {
            spec.name: rng.integers(0, 2, (3, *lead, *spec.dims)).astype(numpy_dtype(spec.dtype))
            for spec in model.inputs
        }
        answer = client.step_batch(name, [session.id for session in sessions], x, chunks=bool(lead))
        sent.append((lead, x, answer.outputs))
    for row, session in enumerate(sessions):
        steps = [
            [x[spec.name][row].reshape(-1, *spec.dims)[t] for spec in model.inputs]
            for lead, x, _ in sent
            for t in range(lead[0] if lead else 1)
        ]
        wanted = step_by_step(root / name / "1" / "model.onnx", steps)
        for index, spec in enumerate(model.outputs):
            got = np.concatenate([outputs[spec.name][row].reshape(-1, *spec.dims) for _, _, outputs in sent])
            np.testing.assert_allclose(got, [answer[index] for answer in wanted], rtol=0, atol=1e-6)
        session.close()


def test_a_sessions_constants_are_given_at_open(client: BlockingClient) -> None:
    with pytest.raises(InputError, match="constant 'speaker' must be given with the initial states"):
        client.session("constants").open()
    with pytest.raises(InputError, match="'speaker' has shape"):
        client.session("constants", initial_states={"speaker": [1.0]}).open()
    with pytest.raises(InputError, match="has no state 'rate'"):
        client.session("constants", initial_states={"rate": [1]}).open()
    ones = np.ones(2, np.float32)
    with (
        client.session("constants", initial_states={"speaker": [10.0, 20.0], "gain": 3.0}) as loud,
        client.session("constants", initial_states={"speaker": [0.0, 0.0], "h": [5.0, 5.0]}) as plain,
        client.session("constants", initial_states={"speaker": [0.0, 0.0]}) as other,
    ):
        assert loud.step(ones).tolist() == [1033.0, 1063.0]
        ids = [session.id for session in (loud, plain, other)]
        rows = client.step_batch("constants", ids, np.ones((3, 2), np.float32)).outputs
        assert rows.tolist() == [[1036.0, 1066.0], [1012.0, 1012.0], [1002.0, 1002.0]]
        with loud.fork() as fork:
            assert fork.step(ones).tolist() == [1039.0, 1069.0]
        loud.reset()
        assert loud.steps(np.ones((3, 2), np.float32))[:, 0].tolist() == [1033.0, 1036.0, 1039.0]
    whole = client.predict("constants", np.ones((3, 2), np.float32), initial_states={"speaker": [1.0, 1.0]})
    assert whole[:, 0].tolist() == [1004.0, 1006.0, 1008.0]


@pytest.fixture(scope="module")
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    """A raw connection."""
    stubs = Stubs(server.target)
    yield stubs
    stubs.channel.close()


_tensors = st.lists(
    st.builds(
        tensor_pb2.Tensor,
        name=st.sampled_from(["", "x", "n", "flag", "y", "x" * 300, "\x00"]),
        dtype=st.sampled_from([0, 1, 2, 9, 12, 99, -5]),
        shape=st.lists(st.sampled_from([0, 1, 2, 3, -1, 2**31, 2**63 - 1, -(2**63)]), max_size=10),
        data=st.binary(max_size=64),
    ),
    max_size=4,
)


@settings(max_examples=CASES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=_tensors,
    states=_tensors,
    model=st.sampled_from([name.replace(" ", "-") for name in foreign.ALL]),
    number=st.sampled_from([0, 1, 2, 2**64 - 1]),
)
def test_any_tensors_are_answered_or_refused_with_a_reason(
    stubs: Stubs, tensors: list[tensor_pb2.Tensor], states: list[tensor_pb2.Tensor], model: str, number: int
) -> None:
    """Lying lengths, absurd shapes, unknown types: never INTERNAL, and the other sessions are unharmed."""
    request = inference_pb2.PredictRequest(model=model, inputs=tensors, initial_states=states)
    reason = ""
    try:
        stubs.inference.Predict(request)
    except grpc.RpcError as error:
        reason = error_info(error).reason
    event(reason or "answered")
    assert reason in {"", *REASONS}
