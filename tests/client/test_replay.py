"""What is kept to be sent again, and when it is enough."""

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st
from recurra.v1.inference_pb2 import StreamStepsRequest
from recurra_client import SessionLostError, SessionNotFoundError, StepGapError
from recurra_client.replay import MAX_BYTES, MAX_STEPS, Replay


def gap(expected: int) -> StepGapError:
    return StepGapError(
        "", reason="STEP_GAP", code=StatusCode.FAILED_PRECONDITION, metadata={"expected_step": str(expected)}
    )


@given(counts=st.lists(st.integers(1, 5), min_size=1, max_size=40), durable=st.integers(0, 60), data=st.data())
def test_whatever_the_last_checkpoint_holds_the_rest_is_kept(
    counts: list[int], durable: int, data: st.DataObject
) -> None:
    replay, ends, step = Replay(), [0], 0
    told = 0
    for count in counts:
        told = max(told, data.draw(st.sampled_from([end for end in ends if end <= durable]), label="durable step"))
        replay.add(StreamStepsRequest(step=step + 1), 1, told)
        step += count
        ends.append(step)
    for end in ends:
        if told <= end < step:
            assert [request.step for request in replay.since(gap(end + 1))] == [e + 1 for e in ends if end <= e < step]
    assert len(replay) == sum(told <= end < step for end in ends)


def test_what_is_not_kept_any_more_is_told() -> None:
    replay = Replay()
    for step in range(1, 10):
        replay.add(StreamStepsRequest(step=step), 1, 4)
    for expected in (1, 4, 10, 11):
        with pytest.raises(SessionLostError, match="open a new session") as caught:
            replay.since(gap(expected))
        assert isinstance(caught.value, SessionNotFoundError)
    replay.clear()
    with pytest.raises(SessionLostError):
        replay.since(gap(5))


def test_it_is_bounded() -> None:
    replay = Replay()
    for step in range(1, MAX_STEPS + 100):
        replay.add(StreamStepsRequest(step=step), 1, 0)
    assert len(replay) == MAX_STEPS
    replay.add(StreamStepsRequest(step=9999), MAX_BYTES - 5, 0)
    assert len(replay) == 6
