"""The loops against a lane whose answers come when the test says so: what is counted, and from when."""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from recurra_client.load import lanes, paced
from recurra_client.load.frames import StreamEndedError
from recurra_client.load.lanes import Lane, RefusedError, UnansweredError, once
from recurra_client.load.loops import Timing, open_all, run_closed
from recurra_client.load.outcome import PATIENCE, Outcome
from recurra_client.load.paced import run_paced


class ScriptedLane:
    """A server's side of a lane: `serve` is called with the number of each message after the opening."""

    sessions = 1
    answered: Callable[[Sequence[str]], None]
    failed: Callable[[Exception], None]

    def __init__(self, serve: Callable[["ScriptedLane", int], None], refused: Exception | None = None) -> None:
        self._serve = serve
        self._refused = refused
        self.opened = 0.0
        self.sent: list[float] = []

    async def open(self) -> None:
        self.opened = time.perf_counter()
        await asyncio.sleep(0)
        if self._refused is not None:
            raise self._refused

    async def close(self) -> None:
        pass

    def send(self) -> None:
        self.sent.append(time.perf_counter())
        self._serve(self, len(self.sent))


def answer_at_once(lane: ScriptedLane, number: int) -> None:
    asyncio.get_running_loop().call_soon(lane.answered, ())


async def load(
    senders: Sequence[Lane], seconds: float, pace: float = 0, arrivals: float = 1e5, patience: float = PATIENCE
) -> Outcome:
    """Run a load without a warm-up."""
    outcome, timing = Outcome(), Timing(0, seconds, patience)
    if pace:
        await run_paced(senders, timing, outcome, pace=pace, arrivals=arrivals)
    else:
        await run_closed(senders, timing, outcome)
    return outcome


async def test_a_closed_loop_sends_when_it_was_answered() -> None:
    senders = [ScriptedLane(answer_at_once) for _ in range(3)]
    outcome = await load(senders, 0.1)
    sent = sum(len(lane.sent) for lane in senders)
    assert sent - len(senders) <= len(outcome.latencies) <= sent  # the first may have been sent before it began
    assert min(len(lane.sent) for lane in senders) > 10
    assert outcome.seconds >= 0.1


async def test_a_closed_loop_with_several_messages_on_their_way() -> None:
    """Answers come in the order of the messages; each is timed from its own sending."""
    waiting: list[tuple[ScriptedLane, float]] = []
    longest = 0

    def answer_when_three_wait(lane: ScriptedLane, number: int) -> None:
        nonlocal longest
        waiting.append((lane, time.perf_counter()))
        longest = max(longest, len(waiting))
        if len(waiting) == 3:
            asyncio.get_running_loop().call_later(0.01, release)

    def release() -> None:
        lane, _ = waiting.pop(0)
        lane.answered(())

    outcome = Outcome()
    lane = ScriptedLane(answer_when_three_wait)
    await run_closed([lane], Timing(0, 0.2), outcome, in_flight=3)
    assert longest == 3
    assert len(lane.sent) > 10
    assert sorted(outcome.latencies)[len(outcome.latencies) // 2] > 0.025, "three turns of 10 ms"


async def test_an_open_loop_sends_answered_or_not_and_counts_from_when_a_message_was_due() -> None:
    """The server stalls for 0.3 s at the first message. All that was due meanwhile waited, and is counted so."""

    def stall(lane: ScriptedLane, number: int) -> None:
        loop = asyncio.get_running_loop()
        until = lane.sent[0] + 0.3
        loop.call_later(max(0, until - time.perf_counter()), lane.answered, ())

    lane = ScriptedLane(stall)
    outcome = await load([lane], 0.5, 0.02)
    assert 24 <= len(lane.sent) <= 25
    assert len(outcome.latencies) == len(lane.sent)
    # Of the 25, those due in the first 0.2 s waited 0.1 s and more: a generator that waits for answers would see one.
    assert sum(latency > 0.1 for latency in outcome.latencies) >= 9


async def test_what_is_sent_late_is_part_of_the_latency_and_told() -> None:
    """The generator itself is held up: the messages that were due meanwhile are late, whoever is to blame."""

    def block(lane: ScriptedLane, number: int) -> None:
        if number == 5:
            end = time.perf_counter() + 0.2
            while time.perf_counter() < end:
                pass
        answer_at_once(lane, number)

    lane = ScriptedLane(block)
    outcome = await load([lane], 0.5, 0.01)
    assert 49 <= len(lane.sent) <= 50  # none is left out
    late = [lateness for lateness in outcome.lateness if lateness > 0.05]
    assert len(late) >= 10
    assert sum(latency > 0.05 for latency in outcome.latencies) >= len(late)


@pytest.mark.parametrize("pace", [0.0, 0.01])
async def test_what_is_never_answered_is_counted_as_such(pace: float) -> None:
    def answer_three(lane: ScriptedLane, number: int) -> None:
        if number <= 3:
            answer_at_once(lane, number)

    lane = ScriptedLane(answer_three)
    outcome = await load([lane], 0.1, pace, patience=0.1)
    assert outcome.errors["UNANSWERED"] == len(lane.sent) - 3 > 0
    assert len(lane.sent) - 1 <= len(outcome.latencies) <= len(lane.sent)
    assert max(outcome.latencies) >= 0.1


@pytest.mark.parametrize("pace", [0.0, 0.01])
async def test_a_lane_that_fails_ends_the_load_with_its_reason(pace: float) -> None:
    def fail(lane: ScriptedLane, number: int) -> None:
        asyncio.get_running_loop().call_soon(lane.failed, ConnectionError("gone"))

    with pytest.raises(ConnectionError, match="gone"):
        await load([ScriptedLane(fail)], 5, pace)
    with pytest.raises(ConnectionError, match="gone"):
        await once(ScriptedLane(fail))


async def test_an_answer_that_comes_too_late_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "_FIRST_SECONDS", 0.01)
    lane = ScriptedLane(lambda *_: None)
    with pytest.raises(UnansweredError, match="did not answer a first message"):
        await once(lane)
    lane.answered(())
    lane.failed(ConnectionError("gone"))


async def test_errors_in_answers_are_counted_by_reason() -> None:
    def refuse(lane: ScriptedLane, number: int) -> None:
        asyncio.get_running_loop().call_soon(lane.answered, ["CAPACITY"] if number % 2 else ())

    outcome = await load([ScriptedLane(refuse)], 0.05)
    assert abs(outcome.errors["CAPACITY"] - len(outcome.latencies) / 2) <= 1


async def test_sessions_come_one_by_one_while_those_that_are_open_step_and_all_are_measured_together() -> None:
    senders = [ScriptedLane(answer_at_once) for _ in range(20)]
    outcome = await load(senders, 0.1, 0.01, arrivals=100)
    opened = sorted(lane.opened for lane in senders)
    assert opened[-1] - opened[0] > 0.1  # of 0.2 s, at random times
    first, last = min(senders, key=lambda lane: lane.opened), max(senders, key=lambda lane: lane.opened)
    assert sum(at < last.opened for at in first.sent) >= 0.8 * (last.opened - first.opened - 0.01) / 0.01 > 0
    assert 0.9 * 20 * 10 <= len(outcome.latencies) <= 20 * 11


async def test_who_joins_is_due_a_pace_from_now_and_never_before_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0, 100.0, 100.0, 100.25, 110.0]  # at last the loop lags behind
    monkeypatch.setattr(paced, "_now", lambda: now.pop(0))
    load = paced._Paced(0.5, Outcome())
    for _ in range(3):
        load.join(ScriptedLane(answer_at_once))
    assert [lane.due for lane in load.lanes] == [100.5, 100.75, 101.0]
    load.stop()


@pytest.mark.parametrize("pace", [0.0, 0.01])
async def test_those_that_the_server_has_no_capacity_for_are_counted_and_left_out(pace: float) -> None:
    senders = [ScriptedLane(answer_at_once, RefusedError("CAPACITY") if i % 3 == 0 else None) for i in range(9)]
    outcome = Outcome()
    if pace:
        outcome = await load(senders, 0.05, pace)
        assert all(bool(lane.sent) == (i % 3 != 0) for i, lane in enumerate(senders))
    else:
        assert await open_all(senders, outcome) == [lane for i, lane in enumerate(senders) if i % 3]
    assert outcome.refused == {"CAPACITY": 3}
    assert outcome.errors == {}


async def test_a_server_that_is_too_busy_to_refuse_is_measured_all_the_same() -> None:
    late = [UnansweredError("in 30 s"), StreamEndedError("CANCELLED", "CANCELLED")]
    outcome = await load([ScriptedLane(answer_at_once, error) for error in (*late, None)], 0.05, 0.01)
    assert outcome.refused == {"UNANSWERED": 2}
    assert outcome.latencies
    with pytest.raises(StreamEndedError, match="gone"):
        await load([ScriptedLane(answer_at_once, StreamEndedError("UNAVAILABLE", "gone"))], 0.05, 0.01)


@pytest.mark.parametrize("reason", ["CAPACITY", "MODEL_NOT_FOUND"])
async def test_there_is_no_load_where_all_are_refused_or_one_for_another_reason(reason: str) -> None:
    senders = [ScriptedLane(answer_at_once, RefusedError(reason))]
    if reason != "CAPACITY":
        senders.append(ScriptedLane(answer_at_once))
    with pytest.raises(RefusedError, match=reason):
        await open_all(senders, Outcome())
    with pytest.raises(RefusedError, match=reason):
        await load(senders, 5, 0.01)


async def test_thousands_of_paced_lanes_fit_into_one_process() -> None:
    """However slow the machine: no lane sends more than is due, and every message is accounted for."""
    senders = [ScriptedLane(answer_at_once) for _ in range(3000)]
    outcome = await load(senders, 0.4, 0.2)
    begin = min(lane.opened for lane in senders)
    end = max(lane.sent[-1] for lane in senders)
    assert max(len(lane.sent) for lane in senders) <= (end - begin) / 0.2 + 1
    assert len(outcome.lateness) == len(outcome.latencies) <= sum(len(lane.sent) for lane in senders)
    assert outcome.errors == {}
