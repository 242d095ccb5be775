"""The unary calls, over the wire."""

from typing import Any

import grpc
import numpy as np
import pytest
from recurra.v1 import inference_pb2, models_pb2, sessions_pb2, tensor_pb2

from tests.support.wire import Stubs, array_of, error_info, tensor

Code = grpc.StatusCode


def open_session(stubs: Stubs, model: str = "counter", **fields: object) -> str:
    """Open a session and return its id."""
    request = sessions_pb2.OpenSessionRequest(model=model, **fields)  # type: ignore[arg-type]
    return stubs.sessions.OpenSession(request).session.session_id


def step(stubs: Stubs, session_id: str, *inputs: tensor_pb2.Tensor, number: int = 0) -> inference_pb2.StepResult:
    """Apply one step or chunk."""
    request = inference_pb2.StepRequest(session_id=session_id, step=number, inputs=inputs)
    return stubs.inference.Step(request).result


def test_models_are_described(stubs: Stubs) -> None:
    listed = stubs.models.ListModels(models_pb2.ListModelsRequest()).models
    names = [(model.name, model.version, model.latest) for model in listed]
    assert names == [
        ("counter", "1", True),
        ("echo", "1", True),
        ("letters", "1", True),
        ("lstm", "10", True),
        ("lstm", "9", False),
        ("watched", "1", True),
    ]
    model = stubs.models.GetModel(models_pb2.GetModelRequest(name="counter")).model
    assert model.description == "A running sum."
    assert model.step_period.ToSeconds() == 60
    assert model.digest.startswith("sha256:")
    assert (model.states[0].input_name, list(model.states[0].dims), model.state_bytes) == ("s_in", [1], 4)
    assert [(spec.name, list(spec.dims)) for spec in model.inputs] == [("x", [1])]


def test_a_session_goes_on_from_step_to_step(stubs: Stubs) -> None:
    session_id = open_session(stubs)
    results = [step(stubs, session_id, tensor([value])) for value in (1, 2, 3)]
    assert [array_of(result.outputs[0]).tolist() for result in results] == [[1.0], [3.0], [6.0]]
    assert [result.step for result in results] == [1, 2, 3]
    assert results[0].timing.batch_size == 1
    chunk = step(stubs, session_id, tensor(np.ones((4, 1))))
    assert array_of(chunk.outputs[0]).tolist() == [[7.0], [8.0], [9.0], [10.0]]
    assert chunk.step == 7
    session = stubs.sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=session_id)).session
    assert session.steps == 7
    with pytest.raises(grpc.RpcError) as caught:
        step(stubs, session_id, tensor([1]))
    assert caught.value.code() == Code.NOT_FOUND
    assert error_info(caught.value).reason == "SESSION_NOT_FOUND"


def test_a_retry_is_marked(stubs: Stubs) -> None:
    session_id = open_session(stubs)
    first, again = (step(stubs, session_id, tensor([5]), number=1) for _ in range(2))
    assert (first.replayed, again.replayed) == (False, True)
    assert array_of(first.outputs[0]) == array_of(again.outputs[0]) == [5.0]
    assert again.step == 1


@pytest.mark.parametrize(
    ("inputs", "code", "reason"),
    [
        ([tensor([[1.0], [2.0]], "float64")], Code.INVALID_ARGUMENT, "INPUT_DTYPE"),
        ([tensor([1.0, 2.0])], Code.INVALID_ARGUMENT, "INPUT_SHAPE"),
        ([tensor([1.0], shape=[3, 1])], Code.INVALID_ARGUMENT, "INPUT_SHAPE"),
        ([tensor([1.0], shape=[-1])], Code.INVALID_ARGUMENT, "INPUT_SHAPE"),
        ([tensor([1.0], shape=[1] * 9)], Code.INVALID_ARGUMENT, "INPUT_SHAPE"),
        ([tensor([1.0], shape=[2**62, 1])], Code.INVALID_ARGUMENT, "CHUNK_LENGTH"),
        ([tensor_pb2.Tensor(data=b"123")], Code.INVALID_ARGUMENT, "INPUT_SHAPE"),
        ([tensor_pb2.Tensor()], Code.INVALID_ARGUMENT, "INPUT_SHAPE"),
        ([tensor_pb2.Tensor(dtype=99, data=b"1234")], Code.INVALID_ARGUMENT, "INPUT_DTYPE"),  # type: ignore[arg-type]
        ([tensor(np.ones((501, 1)))], Code.INVALID_ARGUMENT, "CHUNK_LENGTH"),
        ([tensor(np.ones((0, 1)))], Code.INVALID_ARGUMENT, "CHUNK_LENGTH"),
        ([tensor([np.nan])], Code.INVALID_ARGUMENT, "INPUT_NOT_FINITE"),
        ([tensor([1.0], name="z")], Code.INVALID_ARGUMENT, "INPUT_NAME"),
        ([tensor([1.0]), tensor([1.0])], Code.INVALID_ARGUMENT, "INPUT_NAME"),
        ([], Code.INVALID_ARGUMENT, "INPUT_NAME"),
    ],
)
def test_wrong_inputs_are_refused_and_change_nothing(
    stubs: Stubs, inputs: list[tensor_pb2.Tensor], code: grpc.StatusCode, reason: str
) -> None:
    session_id, other = open_session(stubs), open_session(stubs)
    step(stubs, session_id, tensor([1]))
    with pytest.raises(grpc.RpcError) as caught:
        step(stubs, session_id, *inputs)
    assert (caught.value.code(), error_info(caught.value).reason) == (code, reason)
    assert array_of(step(stubs, session_id, tensor([1])).outputs[0]) == [2.0]
    assert array_of(step(stubs, other, tensor([1])).outputs[0]) == [1.0]


def test_an_index_that_the_model_does_not_know_is_refused(stubs: Stubs) -> None:
    session_id = open_session(stubs, "letters")
    with pytest.raises(grpc.RpcError) as caught:
        step(stubs, session_id, tensor(7, "int64"))
    assert error_info(caught.value).reason == "INPUT_REFUSED"
    assert "indices element out of data bounds" in str(caught.value.details())
    assert "ONNXRuntimeError" not in str(caught.value.details())
    assert step(stubs, session_id, tensor(3, "int64")).step == 1


def test_inputs_may_leave_out_what_the_model_declares(stubs: Stubs) -> None:
    session_id = open_session(stubs)
    one = step(stubs, session_id, tensor_pb2.Tensor(data=np.float32(2).tobytes()))
    assert list(one.outputs[0].shape) == [1]
    three = step(stubs, session_id, tensor_pb2.Tensor(data=np.ones(3, np.float32).tobytes()))
    assert array_of(three.outputs[0]).tolist() == [[3.0], [4.0], [5.0]]


@pytest.mark.parametrize(
    ("fields", "code", "reason"),
    [
        ({"model": "nothing"}, Code.NOT_FOUND, "MODEL_NOT_FOUND"),
        ({"model": "counter", "version": "8"}, Code.NOT_FOUND, "MODEL_NOT_FOUND"),
        ({"model": "counter", "session_id": "no spaces"}, Code.INVALID_ARGUMENT, "SESSION_ID"),
        ({"model": "counter", "idle_timeout": {"seconds": 0}}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        ({"model": "counter", "idle_timeout": {"seconds": 10**9}}, Code.INVALID_ARGUMENT, "INVALID_REQUEST"),
        (
            {"model": "counter", "idle_timeout": {"seconds": 2**63 - 1, "nanos": 2**31 - 1}},
            Code.INVALID_ARGUMENT,
            "INVALID_REQUEST",
        ),
        ({"model": "counter", "initial_states": [tensor([1, 2])]}, Code.INVALID_ARGUMENT, "INPUT_SHAPE"),
        ({"model": "counter", "initial_states": [tensor([np.inf])]}, Code.INVALID_ARGUMENT, "INPUT_NOT_FINITE"),
        ({"model": "counter", "initial_states": [tensor([1], name="q")]}, Code.INVALID_ARGUMENT, "INPUT_NAME"),
    ],
)
def test_sessions_that_cannot_be_opened(
    stubs: Stubs, fields: dict[str, object], code: grpc.StatusCode, reason: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.sessions.OpenSession(sessions_pb2.OpenSessionRequest(**fields))  # type: ignore[arg-type]
    assert (caught.value.code(), error_info(caught.value).reason) == (code, reason)


def test_session_life(stubs: Stubs) -> None:
    session_id = open_session(stubs, initial_states=[tensor([10.0])])
    assert array_of(step(stubs, session_id, tensor([1])).outputs[0]) == [11.0]
    fork = stubs.sessions.ForkSession(sessions_pb2.ForkSessionRequest(session_id=session_id)).session
    assert (fork.steps, fork.model) == (1, "counter")
    assert array_of(step(stubs, fork.session_id, tensor([5])).outputs[0]) == [16.0]
    reset = stubs.sessions.ResetSession(sessions_pb2.ResetSessionRequest(session_id=session_id)).session
    assert reset.steps == 0
    assert array_of(step(stubs, session_id, tensor([1])).outputs[0]) == [1.0]
    got = stubs.sessions.GetSession(sessions_pb2.GetSessionRequest(session_id=session_id)).session
    assert (got.steps, got.version, got.idle_timeout.seconds) == (1, "1", 600)


def test_sessions_are_listed_page_by_page(stubs: Stubs) -> None:
    mine = [open_session(stubs, "lstm") for _ in range(5)]
    found: list[str] = []
    token = ""
    while True:
        page = stubs.sessions.ListSessions(
            sessions_pb2.ListSessionsRequest(model="lstm", page_size=2, page_token=token)
        )
        found += [session.session_id for session in page.sessions]
        token = page.next_page_token
        if not token:
            break
    assert found[-5:] == mine
    assert page.total == len(found)
    with pytest.raises(grpc.RpcError) as caught:
        stubs.sessions.ListSessions(sessions_pb2.ListSessionsRequest(page_token="9" * 40))
    assert error_info(caught.value).reason == "INVALID_REQUEST"


def test_a_version_can_be_chosen_and_the_latest_is_the_default(stubs: Stubs) -> None:
    x = tensor(np.ones((3, 4)))
    latest, ninth, tenth = (
        stubs.inference.Predict(inference_pb2.PredictRequest(model="lstm", version=version, inputs=[x]))
        for version in ("", "9", "10")
    )
    assert latest.outputs[0].data == tenth.outputs[0].data != ninth.outputs[0].data


def test_predict_runs_a_sequence_without_a_session(stubs: Stubs) -> None:
    x = [tensor([[1.0], [2.0], [3.0]])]
    many = stubs.inference.Predict(inference_pb2.PredictRequest(model="counter", inputs=x))
    one = stubs.inference.Predict(inference_pb2.PredictRequest(model="counter", inputs=x, last_only=True))
    assert array_of(many.outputs[0]).tolist() == [[1.0], [3.0], [6.0]]
    assert array_of(one.outputs[0]).tolist() == [6.0]
    begun = inference_pb2.PredictRequest(model="counter", inputs=x, initial_states=[tensor([100.0])], last_only=True)
    assert array_of(stubs.inference.Predict(begun).outputs[0]).tolist() == [106.0]


def test_step_batch_answers_row_by_row(stubs: Stubs) -> None:
    first, second = open_session(stubs), open_session(stubs)
    request = inference_pb2.StepBatchRequest(
        session_ids=[first, "unknown", second, first],
        steps=[1, 1, 9, 2],
        inputs=[tensor([[1.0], [2.0], [3.0], [4.0]])],
    )
    answer = stubs.inference.StepBatch(request)
    assert list(answer.steps) == [1, 0, 0, 2]
    assert array_of(answer.outputs[0]).tolist() == [[1.0], [0.0], [0.0], [5.0]]
    assert [(row.row, row.error.reason) for row in answer.errors] == [(1, "SESSION_NOT_FOUND"), (2, "STEP_GAP")]
    assert answer.errors[1].error.metadata["expected_step"] == "1"
    del request.session_ids[1:3], request.steps[1:3]
    request.inputs[0].CopyFrom(tensor([[1.0], [4.0]]))
    again = stubs.inference.StepBatch(request)
    assert list(again.replayed_rows) == [1], "only the last reply of a session is kept"
    assert [row.error.reason for row in again.errors] == ["STEP_NOT_HELD"]


def test_a_step_batch_of_more_rows_than_run_in_one_call(stubs: Stubs) -> None:
    ids = [open_session(stubs, "counter") for _ in range(300)]
    x = np.arange(600, dtype=np.float32).reshape(300, 2, 1)
    x[299, 1] = np.nan
    request = inference_pb2.StepBatchRequest(session_ids=ids, steps=[1] * 300, inputs=[tensor(x)])
    response = stubs.inference.StepBatch(request)
    assert list(response.steps) == [2] * 299 + [0]
    assert [(error.row, error.error.reason) for error in response.errors] == [(299, "INPUT_NOT_FINITE")]
    expected = np.cumsum(x, axis=1)
    expected[299] = 0
    assert list(response.outputs[0].shape) == [300, 2, 1]
    np.testing.assert_array_equal(np.frombuffer(response.outputs[0].data, np.float32), expected.ravel())
    assert response.timing.batch_size == 44
    assert response.timing.compute_us > 0
    again = stubs.inference.StepBatch(request)
    assert list(again.replayed_rows) == list(range(299))
    assert again.outputs == response.outputs
    for session_id in ids:  # so many that were opened at once would keep those of the next tests waiting
        stubs.sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=session_id))


def test_step_batch_takes_chunks(stubs: Stubs) -> None:
    ids = [open_session(stubs) for _ in range(3)]
    x = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    answer = stubs.inference.StepBatch(inference_pb2.StepBatchRequest(session_ids=ids, inputs=[tensor(x)]))
    np.testing.assert_array_equal(array_of(answer.outputs[0]), np.cumsum(x, axis=1))
    assert list(answer.steps) == [4, 4, 4]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "INVALID_REQUEST"),
        ({"steps": [1]}, "INVALID_REQUEST"),
        ({"inputs": [tensor([1.0])]}, "INPUT_SHAPE"),
        ({"inputs": []}, "INPUT_NAME"),
    ],
)
def test_step_batches_that_make_no_sense(stubs: Stubs, fields: dict[str, object], reason: str) -> None:
    ids = [open_session(stubs), open_session(stubs)] if fields else []
    with pytest.raises(grpc.RpcError) as caught:
        stubs.inference.StepBatch(inference_pb2.StepBatchRequest(session_ids=ids, **fields))  # type: ignore[arg-type]
    assert error_info(caught.value).reason == reason


def test_a_step_batch_has_a_bound(stubs: Stubs) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stubs.inference.StepBatch(inference_pb2.StepBatchRequest(session_ids=[""] * 100_000))
    assert error_info(caught.value).reason == "INVALID_REQUEST"


def test_a_burst_of_calls_is_answered(stubs: Stubs) -> None:
    """Two thousand at once are not more than the server may hold."""
    session_id = open_session(stubs, "lstm")
    request = sessions_pb2.GetSessionRequest(session_id=session_id)
    calls = [stubs.sessions.GetSession.future(request) for _ in range(2000)]
    assert all(call.result().session.session_id == session_id for call in calls)


def test_long_names_do_not_break_the_error(stubs: Stubs) -> None:
    for call in (
        lambda: stubs.sessions.GetSession(sessions_pb2.GetSessionRequest(session_id="x" * 100_000)),
        lambda: open_session(stubs, "x" * 100_000),
        lambda: step(stubs, open_session(stubs), tensor([1], name="x" * 100_000)),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert error_info(caught.value).reason in ("SESSION_NOT_FOUND", "MODEL_NOT_FOUND", "INPUT_NAME")


def test_a_reset_or_fork_that_meets_a_close_is_told_so(stubs: Stubs) -> None:
    session_id = open_session(stubs)
    long = inference_pb2.StepRequest(session_id=session_id, inputs=[tensor(np.ones((500, 1)))])
    running = stubs.inference.Step.future(long)
    waiting: list[Any] = [
        stubs.sessions.ResetSession.future(sessions_pb2.ResetSessionRequest(session_id=session_id)),
        stubs.sessions.ForkSession.future(sessions_pb2.ForkSessionRequest(session_id=session_id)),
    ]
    stubs.sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=session_id))
    for call in (running, *waiting):
        error = call.exception()
        assert error is None or call.code() == Code.NOT_FOUND, error


def test_one_step_batch_is_of_one_model(stubs: Stubs) -> None:
    ids = [open_session(stubs), open_session(stubs, "lstm")]
    with pytest.raises(grpc.RpcError) as caught:
        stubs.inference.StepBatch(inference_pb2.StepBatchRequest(session_ids=ids, inputs=[tensor([[1.0], [1.0]])]))
    assert "counter/1, lstm/10" in str(caught.value.details())


def test_generate_feeds_the_output_back(stubs: Stubs) -> None:
    model = inference_pb2.ModelVersion(name="echo")
    request = inference_pb2.GenerateRequest(model=model, inputs=[tensor([2.0])], max_steps=4)
    answers = list(stubs.inference.Generate(request))
    factor = array_of(answers[0].result.outputs[0])[0] / 2.0
    values = [array_of(answer.result.outputs[0])[0] for answer in answers]
    np.testing.assert_allclose(values, [2.0 * factor ** (k + 1) for k in range(4)], rtol=1e-5)
    assert [answer.result.step for answer in answers] == [1, 2, 3, 4]


def test_generate_draws_classes_by_seed_and_goes_on_in_a_session(stubs: Stubs) -> None:
    def draw(seed: int, **start: object) -> list[int]:
        request = inference_pb2.GenerateRequest(
            inputs=[tensor(1, "int64")],
            max_steps=12,
            sampling=inference_pb2.Sampling(temperature=1.0, seed=seed),
            **start,  # type: ignore[arg-type]
        )
        return [int(array_of(answer.next_input)) for answer in stubs.inference.Generate(request)]

    model = inference_pb2.ModelVersion(name="letters")
    assert draw(1, model=model) == draw(1, model=model)
    assert draw(1, model=model) != draw(2, model=model)
    session_id = open_session(stubs, "letters")
    assert draw(1, session_id=session_id) == draw(1, model=model)
    steps = stubs.sessions.GetSession(sessions_pb2.GetSessionRequest(session_id=session_id)).session.steps
    assert steps == 12
    drawn = draw(3, model=model)
    stop = inference_pb2.GenerateRequest(
        model=model,
        inputs=[tensor(1, "int64")],
        max_steps=12,
        sampling=inference_pb2.Sampling(temperature=1.0, seed=3),
        stop_class=drawn[2],
    )
    assert [int(array_of(a.next_input)) for a in stubs.inference.Generate(stop)] == drawn[: drawn.index(drawn[2]) + 1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": {"name": "counter"}, "max_steps": 1}, "NO_FEEDBACK"),
        ({"model": {"name": "echo"}, "max_steps": 0}, "INVALID_REQUEST"),
        ({"model": {"name": "echo"}, "max_steps": 501}, "INVALID_REQUEST"),
        ({"model": {"name": "echo"}, "max_steps": 1, "stop_class": 1}, "INVALID_REQUEST"),
        ({"max_steps": 1}, "INVALID_REQUEST"),
        ({"session_id": "unknown", "max_steps": 1}, "SESSION_NOT_FOUND"),
        ({"model": {"name": "nothing"}, "max_steps": 1}, "MODEL_NOT_FOUND"),
    ],
)
def test_what_cannot_be_generated(stubs: Stubs, fields: dict[str, object], reason: str) -> None:
    request = inference_pb2.GenerateRequest(inputs=[tensor([1.0])], **fields)  # type: ignore[arg-type]
    with pytest.raises(grpc.RpcError) as caught:
        list(stubs.inference.Generate(request))
    assert error_info(caught.value).reason == reason


def test_a_message_over_the_bound_is_refused(stubs: Stubs) -> None:
    session_id = open_session(stubs)
    with pytest.raises(grpc.RpcError) as caught:
        step(stubs, session_id, tensor_pb2.Tensor(data=bytes(17 << 20)))
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    assert array_of(step(stubs, session_id, tensor([1])).outputs[0]) == [1.0]
