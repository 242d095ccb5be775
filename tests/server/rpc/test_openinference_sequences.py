"""Sequences of the Open Inference Protocol, over the wire, with stubs of our own proto."""

from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from recurra.openinference import open_inference_pb2 as pb
from recurra.v1 import inference_pb2, sessions_pb2

from tests.support.openinference import InferStream, Service, error_of, refusal, request, service, values
from tests.support.server import running_server
from tests.support.wire import Stubs, error_info, tensor

Code = grpc.StatusCode


def test_a_sequence_goes_on_from_call_to_call_and_ends(infer: Service, sequence: int) -> None:
    sums = [
        values(infer.ModelInfer(request([[x]], sequence=sequence, start=x == 1, end=x == 3))).item() for x in (1, 2, 3)
    ]
    assert sums == [1, 3, 6]
    error = refusal(infer, request(sequence=sequence))
    assert (error.code(), error_info(error).reason) == (Code.NOT_FOUND, "SESSION_NOT_FOUND")


def test_a_missing_start_names_the_sequence_and_says_so(infer: Service) -> None:
    for sequence, shown in ((123456, "123456"), ("call-9 é", "'call-9 é'")):
        error = refusal(infer, request(sequence=sequence))
        assert f"sequence {shown} of model 'counter'" in str(error.details())
        assert "sequence_start" in str(error.details())
        assert error_info(error).metadata["sequence_id"] == str(sequence)


def test_the_id_is_echoed_and_the_answer_is_raw(infer: Service, sequence: int) -> None:
    answer = infer.ModelInfer(request([[2.0]], sequence=sequence, start=True, id="request 17"))
    assert (answer.id, answer.model_name, answer.model_version) == ("request 17", "counter", "1")
    assert [(o.name, o.datatype, list(o.shape), o.HasField("contents")) for o in answer.outputs] == [
        ("y", "FP32", [1, 1], False)
    ]
    assert list(answer.raw_output_contents) == [np.float32(2).tobytes()]


def test_start_and_end_in_one_request_is_a_sequence_of_its_own(infer: Service, sequence: int) -> None:
    for value in (4.0, 5.0):
        answer = infer.ModelInfer(request([[value]], sequence=sequence, start=True, end=True))
        assert values(answer).item() == value
    assert refusal(infer, request(sequence=sequence)).code() == Code.NOT_FOUND


def test_start_on_a_live_id_begins_anew(infer: Service, sequence: int) -> None:
    infer.ModelInfer(request([[10.0]], sequence=sequence, start=True))
    assert values(infer.ModelInfer(request([[1.0]], sequence=sequence, start=True))).item() == 1
    assert values(infer.ModelInfer(request([[1.0]], sequence=sequence))).item() == 2


def test_numbers_texts_and_models_keep_their_sequences_apart(infer: Service) -> None:
    ids: list[int | str] = [77, "77", ":77", "77 ", "ключ", "a" * 128]
    for number, sequence in enumerate(ids):
        infer.ModelInfer(request([[float(number)]], sequence=sequence, start=True))
    infer.ModelInfer(request([[0.5]], sequence=77, start=True, model="echo"))
    for number, sequence in enumerate(ids):
        assert values(infer.ModelInfer(request([[100.0]], sequence=sequence))).item() == 100 + number


def test_a_sequence_belongs_to_its_id_and_not_to_a_stream(infer: Service, sequence: int) -> None:
    first, second = InferStream(infer), InferStream(infer)
    assert first.step(1, sequence=sequence, start=True) == 1
    assert second.step(2, sequence=sequence) == 3
    assert first.step(4, sequence=sequence) == 7
    first.end()
    assert second.step(8, sequence=sequence) == 15
    second.end()
    assert values(infer.ModelInfer(request([[16.0]], sequence=sequence, end=True))).item() == 31


def test_one_stream_carries_many_sequences_pipelined(infer: Service) -> None:
    stream, ids = InferStream(infer), [f"many-{n}" for n in range(20)]
    for step in range(10):
        for n, sequence in enumerate(ids):
            stream.send(
                request([[float(n)]], sequence=sequence, start=step == 0, end=step == 9, id=f"{sequence}/{step}")
            )
    answers = [response.infer_response for response in stream.end()]
    for n, sequence in enumerate(ids):
        mine = [answer for answer in answers if answer.id.startswith(f"{sequence}/")]
        assert [answer.id for answer in mine] == [f"{sequence}/{step}" for step in range(10)]
        assert [values(answer).item() for answer in mine] == [n * (step + 1) for step in range(10)]


def test_sequences_with_one_id_may_be_sent_without_waiting(infer: Service, sequence: int) -> None:
    """A START waits until the steps sent before it are done; what is sent after it waits with it."""
    stream = InferStream(infer)
    chunk = [[1.0]] * 500  # long enough that the server has not done with it when the next ones come
    for round_ in range(3):
        stream.send(request(chunk, sequence=sequence, start=True, id=f"{round_}a"))
        stream.send(request([[1.0]], sequence=sequence, end=round_ == 1, id=f"{round_}b"))
        stream.send(request(chunk, sequence=sequence, start=True, id=f"{round_}c"))
        stream.send(request([[2.0]], sequence=sequence, id=f"{round_}d"))
    answers = stream.end()
    assert [(a.infer_response.id, a.error_message) for a in answers] == [
        (f"{round_}{letter}", "") for round_ in range(3) for letter in "abcd"
    ]
    last = [values(answer.infer_response)[-1].item() for answer in answers]
    assert last == [500, 501, 500, 502] * 3


def test_what_follows_an_end_without_a_start_is_refused(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    stream.send(request([[1.0]] * 500, sequence=sequence, start=True, id="first"))
    stream.send(request(sequence=sequence, end=True, id="last"))
    stream.send(request(sequence=sequence, id="orphan"))
    stream.send(request([[7.0]], sequence=sequence, start=True, id="anew"))
    stream.send(request([[1.0]], sequence=sequence, id="next"))
    answers = {answer.infer_response.id: answer for answer in stream.end()}
    assert values(answers["last"].infer_response).item() == 501
    assert "SESSION_NOT_FOUND" in answers["orphan"].error_message
    assert values(answers["anew"].infer_response).item() == 7
    assert values(answers["next"].infer_response).item() == 8


def test_a_sequence_whose_first_step_fails_has_not_begun(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    assert "INPUT_NOT_FINITE" in stream.ask(request([[np.nan]], sequence=sequence, start=True)).error_message
    assert "SESSION_NOT_FOUND" in stream.ask(request([[1.0]], sequence=sequence)).error_message
    assert stream.step(3, sequence=sequence, start=True) == 3


def test_a_sequence_whose_last_step_fails_has_not_ended(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    assert stream.step(3, sequence=sequence, start=True) == 3
    assert "INPUT_NOT_FINITE" in stream.ask(request([[np.inf]], sequence=sequence, end=True)).error_message
    assert stream.step(4, sequence=sequence, end=True) == 7


def test_errors_of_a_stream_come_in_band_and_it_goes_on(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    assert stream.step(1, sequence=sequence, start=True) == 1
    failed = stream.ask(request([[1.0, 2.0]], sequence=sequence, id="the one"))
    assert failed.infer_response.id == "the one"
    assert failed.error_message.startswith("[request id: the one] INPUT_SHAPE: ")
    assert failed.infer_response.parameters["reason"].string_param == "INPUT_SHAPE"
    assert stream.ask(request(model="nothing", sequence=5, start=True)).error_message.startswith("MODEL_NOT_FOUND: ")
    assert stream.ask(request(model="nothing", sequence=5)).error_message.startswith("MODEL_NOT_FOUND: ")
    assert stream.step(1, sequence=sequence) == 2
    assert stream.end() == []


def test_every_answer_of_a_stream_says_that_it_is_the_final_one(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    wanted = {"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)}
    for parameters in (wanted, {}):
        for message in (request(sequence=sequence, start=True, parameters=parameters), request(sequence="none")):
            assert stream.ask(message).infer_response.parameters["triton_final_response"].bool_param
    assert stream.end() == []


def test_without_a_sequence_id_a_request_is_a_sequence_by_itself(infer: Service, stubs: Stubs) -> None:
    before = stubs.sessions.ListSessions(sessions_pb2.ListSessionsRequest(model="counter")).total
    whole = [[1.0], [2.0], [3.0]]
    for sequence in (None, 0, ""):
        assert values(infer.ModelInfer(request(whole, sequence=sequence))).tolist() == [[1], [3], [6]]
    stream = InferStream(infer)
    assert values(stream.ask(request(whole)).infer_response).tolist() == [[1], [3], [6]]
    assert "INPUT_NOT_FINITE" in stream.ask(request([[np.nan]])).error_message
    stream.end()
    assert stubs.sessions.ListSessions(sessions_pb2.ListSessionsRequest(model="counter")).total == before
    error = refusal(infer, request(start=True))
    assert error_info(error).metadata["field"] == "sequence_id"


@pytest.mark.parametrize("streamed", [False, True])
def test_who_goes_away_gives_back_what_only_he_knew(repository: Path, streamed: bool) -> None:
    """A request without a sequence_id lives in a session that ends with its call, answered or not."""
    long = request(np.ones((400_000, 4)), model="lstm")
    bounds = ("--max-sessions", "1", "--max-chunk-steps", "500000")
    with running_server(repository, *bounds) as server, grpc.insecure_channel(server.target) as channel:
        infer = service(channel)
        stream = InferStream(infer)
        if streamed:
            stream.send(long)
        call: Any = stream.call if streamed else infer.ModelInfer.future(long)
        asked = pb.ModelStatisticsRequest(name="lstm", version="10")
        while not infer.ModelStatistics(asked).model_stats[0].execution_count:
            pass
        assert refusal(infer, request()).code() == Code.RESOURCE_EXHAUSTED
        call.cancel()
        for _ in range(1000):  # until the server has seen that he is gone
            error = error_of(lambda: infer.ModelInfer(request()))
            if error is None:
                break
        assert error is None
        assert infer.ModelStatistics(asked).model_stats[0].inference_count == 0


def test_a_sequence_is_a_session_like_any_other(infer: Service, stubs: Stubs, sequence: int) -> None:
    infer.ModelInfer(request([[5.0]], sequence=sequence, start=True))
    step = inference_pb2.StepRequest(session_id=f"counter:{sequence}", inputs=[tensor([1])])
    assert np.frombuffer(stubs.inference.Step(step).result.outputs[0].data, np.float32).item() == 6
    stubs.sessions.CloseSession(sessions_pb2.CloseSessionRequest(session_id=f"counter:{sequence}"))
    assert "sequence_start" in str(refusal(infer, request(sequence=sequence)).details())


def test_a_sequence_stays_on_the_version_where_it_began(infer: Service, sequence: int) -> None:
    x = np.ones((1, 4))
    ninth = infer.ModelInfer(request(x, model="lstm", model_version="9", sequence=sequence, start=True))
    assert ninth.model_version == "9"
    assert infer.ModelInfer(request(x, model="lstm", sequence=sequence)).model_version == "9"
    error = refusal(infer, request(x, model="lstm", model_version="10", sequence=sequence))
    assert "runs on version 9" in str(error.details())
    assert infer.ModelInfer(request(x, model="lstm", sequence=sequence, start=True)).model_version == "10"


def test_a_step_whose_timeout_passes_before_it_is_run_is_not_run(infer: Service, sequence: int) -> None:
    stream = InferStream(infer)
    assert stream.step(1, sequence=sequence, start=True) == 1
    for number in range(20):
        stream.send(request([[1.0]] * 500, sequence=sequence, id=f"long {number}"))
    late = {"timeout": pb.InferParameter(int64_param=1), "priority": pb.InferParameter(uint64_param=3)}
    stream.send(request([[1000.0]], sequence=sequence, parameters=late, id="late"))
    answers = {answer.infer_response.id: answer for answer in stream.end()}
    assert answers["late"].infer_response.parameters["reason"].string_param == "DEADLINE"
    assert values(infer.ModelInfer(request([[0.0]], sequence=sequence))).item() == 10_001
