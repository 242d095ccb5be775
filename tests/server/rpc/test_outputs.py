"""Outputs asked for by name, over the wire: in every call that answers steps, in both protocols."""

from typing import Any

import grpc
import numpy as np
import pytest
from recurra.openinference import open_inference_pb2 as pb
from recurra.v1 import inference_pb2, models_pb2, sessions_pb2, tensor_pb2

from tests.support.openinference import InferStream, request, service
from tests.support.wire import Stream, Stubs, array_of, error_info, tensor

ASKED = ["entry", "y"]


@pytest.fixture
def session_id(stubs: Stubs) -> str:
    return stubs.sessions.OpenSession(sessions_pb2.OpenSessionRequest(model="watched")).session.session_id


def by_name(outputs: Any) -> dict[str, list[Any]]:
    return {output.name: array_of(output).tolist() for output in outputs}


def test_a_model_says_which_outputs_are_optional(stubs: Stubs) -> None:
    model = stubs.models.GetModel(models_pb2.GetModelRequest(name="watched")).model
    assert [(spec.name, spec.optional) for spec in model.outputs] == [("double", True), ("y", False), ("entry", True)]


def test_a_step_is_answered_with_what_it_asks_for(stubs: Stubs, session_id: str) -> None:
    def step(value: float, *outputs: str) -> dict[str, list[Any]]:
        message = inference_pb2.StepRequest(session_id=session_id, inputs=[tensor([value])], outputs=outputs)
        return by_name(stubs.inference.Step(message).result.outputs)

    assert step(1) == {"y": [1]}
    assert step(2, *ASKED) == {"entry": [103], "y": [3]}
    assert list(step(0, *ASKED)) == ASKED
    assert step(20) == {"y": [23]}, "what is beyond the table is not looked up"


def test_each_message_of_a_stream_asks_for_itself(stubs: Stubs) -> None:
    stream = Stream(stubs)
    opening = sessions_pb2.OpenSessionRequest(model="watched")
    first = stream.ask(open=opening, inputs=[tensor([1])], outputs=ASKED)
    assert (first.opened.session_id, by_name(first.result.outputs)) == (first.session_id, {"entry": [101], "y": [1]})
    assert by_name(stream.ask(inputs=[tensor([1])]).result.outputs) == {"y": [2]}
    chunk = stream.ask(inputs=[tensor([[1], [1]])], outputs=["double"], close=True)
    assert (by_name(chunk.result.outputs), chunk.closed.steps) == ({"double": [[6], [8]]}, 4)
    assert stream.end() == []


def test_a_row_of_a_batch_is_answered_with_what_the_batch_asks_for(stubs: Stubs) -> None:
    opening = sessions_pb2.OpenSessionRequest(model="watched")
    ids = [stubs.sessions.OpenSession(opening).session.session_id for _ in range(2)]

    def batch(values: list[float], steps: list[int], outputs: list[str]) -> Any:
        rows = tensor(np.array(values)[:, None])
        message = inference_pb2.StepBatchRequest(session_ids=ids, steps=steps, inputs=[rows], outputs=outputs)
        return stubs.inference.StepBatch(message)

    assert by_name(batch([1, 2], [1, 1], ASKED).outputs) == {"entry": [[101], [102]], "y": [[1], [2]]}
    again = batch([1, 2], [1, 1], ASKED)
    assert (by_name(again.outputs), list(again.replayed_rows)) == ({"entry": [[101], [102]], "y": [[1], [2]]}, [0, 1])
    assert {row.error.reason for row in batch([1, 2], [1, 1], []).errors} == {"STEP_NOT_HELD"}
    assert by_name(batch([20, 0], [2, 2], []).outputs) == {"y": [[21], [2]]}


@pytest.mark.parametrize(
    ("last_only", "expected"), [(False, {"entry": [[101], [103]], "y": [[1], [3]]}), (True, {"entry": [103], "y": [3]})]
)
def test_a_whole_sequence_asks_too(stubs: Stubs, last_only: bool, expected: dict[str, list[Any]]) -> None:
    inputs = [tensor([[1], [2]])]
    message = inference_pb2.PredictRequest(model="watched", inputs=inputs, outputs=ASKED, last_only=last_only)
    assert by_name(stubs.inference.Predict(message).outputs) == expected


def test_what_is_fed_back_need_not_be_asked_for(stubs: Stubs) -> None:
    def generate(*outputs: str) -> list[tuple[dict[str, list[Any]], list[float]]]:
        model = inference_pb2.ModelVersion(name="watched")
        message = inference_pb2.GenerateRequest(model=model, inputs=[tensor([1])], max_steps=3, outputs=outputs)
        answers = stubs.inference.Generate(message)
        return [(by_name(answer.result.outputs), array_of(answer.next_input).tolist()) for answer in answers]

    assert generate("entry") == [({"entry": [100 + total]}, [total]) for total in (1, 2, 4)]
    assert generate("double", "y") == [({"double": [2 * total], "y": [total]}, [total]) for total in (1, 2, 4)]
    assert generate() == [({"y": [total]}, [total]) for total in (1, 2, 4)]


def test_the_open_inference_protocol_asks_by_name(stubs: Stubs) -> None:
    infer = service(stubs.channel)

    def message(value: float, *outputs: str, **place: Any) -> pb.ModelInferRequest:
        return request([[value]], model="watched", sequence="names", outputs=outputs, **place)

    def answered(response: pb.ModelInferResponse) -> dict[str, float]:
        raw = zip(response.outputs, response.raw_output_contents, strict=True)
        return {output.name: np.frombuffer(data, np.float32).item() for output, data in raw}

    assert answered(infer.ModelInfer(message(1, start=True))) == {"y": 1}
    assert answered(infer.ModelInfer(message(1, *ASKED))) == {"entry": 102, "y": 2}
    stream = InferStream(infer)
    assert answered(stream.ask(message(1, "double")).infer_response) == {"double": 6}
    assert answered(stream.ask(message(20)).infer_response) == {"y": 23}
    assert "it has double, y, entry" in stream.ask(message(1, "z")).error_message
    assert "asked for twice" in stream.ask(message(1, "y", "y")).error_message


def test_a_name_that_there_is_not_is_refused_with_those_that_there_are(stubs: Stubs, session_id: str) -> None:
    inputs, outputs = [tensor([1])], ["y", "z"]
    model = inference_pb2.ModelVersion(name="watched")
    calls: list[tuple[Any, Any]] = [
        (stubs.inference.Step, inference_pb2.StepRequest(session_id=session_id, inputs=inputs, outputs=outputs)),
        (
            stubs.inference.StepBatch,
            inference_pb2.StepBatchRequest(session_ids=[session_id], inputs=[tensor([[1]])], outputs=outputs),
        ),
        (stubs.inference.Predict, inference_pb2.PredictRequest(model="watched", inputs=inputs, outputs=outputs)),
        (
            lambda message: next(stubs.inference.Generate(message)),
            inference_pb2.GenerateRequest(model=model, inputs=inputs, max_steps=1, outputs=outputs),
        ),
    ]
    for call, message in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call(message)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "no output 'z'; it has double, y, entry" in str(caught.value.details())
        assert error_info(caught.value).metadata["field"] == "outputs"
    stream = Stream(stubs)
    refused = stream.ask(session_id=session_id, inputs=inputs, outputs=outputs)
    assert refused.error.reason == "INVALID_REQUEST"
    assert by_name(stream.ask(inputs=inputs).result.outputs) == {"y": [1]}, "nothing was applied"


@pytest.mark.parametrize("inputs", [[], [tensor_pb2.Tensor()]])
def test_outputs_are_of_a_step_and_not_of_a_session(stubs: Stubs, inputs: list[tensor_pb2.Tensor]) -> None:
    """Who names them where he opens the session would wait for them in vain: he is told."""
    opening = sessions_pb2.OpenSessionRequest(model="watched")
    refused = Stream(stubs).ask(open=opening, inputs=inputs, outputs=ASKED)
    assert refused.error.reason == ("INPUT_SHAPE" if inputs else "INVALID_REQUEST")
    if not inputs:
        assert "outputs are asked for with a step" in refused.error.message
