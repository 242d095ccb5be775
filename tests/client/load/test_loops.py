"""The loops against a lane whose answers come when the test says so: what is counted, and from when."""

import asyncio
import time
from collections.abc import Callable, Sequence

import pytest
from recurra_client.load import loops
from recurra_client.load.loops import once, run_lanes
from recurra_client.load.outcome import Outcome


class ScriptedLane:
    """A server's side of a lane: `serve` is called with the number of each message."""

    sessions = 1
    answered: Callable[[Sequence[str]], None]
    failed: Callable[[Exception], None]

    def __init__(self, serve: Callable[["ScriptedLane", int], None]) -> None:
        self._serve = serve
        self.sent: list[float] = []

    def send(self) -> None:
        self.sent.append(time.perf_counter())
        self._serve(self, len(self.sent))


def answer_at_once(lane: ScriptedLane, number: int) -> None:
    asyncio.get_running_loop().call_soon(lane.answered, ())


async def test_a_closed_loop_sends_when_it_was_answered() -> None:
    lanes = [ScriptedLane(answer_at_once) for _ in range(3)]
    outcome = Outcome()
    await run_lanes(lanes, warmup=0, seconds=0.1, pace=0, outcome=outcome)
    assert len(outcome.latencies) == sum(len(lane.sent) for lane in lanes)
    assert min(len(lane.sent) for lane in lanes) > 10
    assert outcome.seconds >= 0.1


async def test_an_open_loop_sends_answered_or_not_and_counts_from_when_a_message_was_due() -> None:
    """The server stalls for 0.3 s at the first message. All that was due meanwhile waited, and is counted so."""

    def stall(lane: ScriptedLane, number: int) -> None:
        loop = asyncio.get_running_loop()
        until = lane.sent[0] + 0.3
        loop.call_later(max(0, until - time.perf_counter()), lane.answered, ())

    lane = ScriptedLane(stall)
    outcome = Outcome()
    await run_lanes([lane], warmup=0, seconds=0.5, pace=0.02, outcome=outcome)
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
    outcome = Outcome()
    await run_lanes([lane], warmup=0, seconds=0.5, pace=0.01, outcome=outcome)
    assert 49 <= len(lane.sent) <= 50  # none is left out
    late = [lateness for lateness in outcome.lateness if lateness > 0.05]
    assert len(late) >= 10
    assert sum(latency > 0.05 for latency in outcome.latencies) >= len(late)


@pytest.mark.parametrize("pace", [0.0, 0.01])
async def test_what_is_never_answered_is_counted_as_such(pace: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_GIVE_UP_SECONDS", 0.1)

    def answer_three(lane: ScriptedLane, number: int) -> None:
        if number <= 3:
            answer_at_once(lane, number)

    lane = ScriptedLane(answer_three)
    outcome = Outcome()
    await run_lanes([lane], warmup=0, seconds=0.1, pace=pace, outcome=outcome)
    assert outcome.errors["UNANSWERED"] == len(lane.sent) - 3 > 0
    assert len(outcome.latencies) == len(lane.sent)
    assert max(outcome.latencies) >= 0.1


async def test_a_lane_that_fails_ends_the_load_with_its_reason() -> None:
    def fail(lane: ScriptedLane, number: int) -> None:
        asyncio.get_running_loop().call_soon(lane.failed, ConnectionError("gone"))

    with pytest.raises(ConnectionError, match="gone"):
        await run_lanes([ScriptedLane(fail)], warmup=0, seconds=5, pace=0, outcome=Outcome())
    with pytest.raises(ConnectionError, match="gone"):
        await once(ScriptedLane(fail))


async def test_errors_in_answers_are_counted_by_reason() -> None:
    def refuse(lane: ScriptedLane, number: int) -> None:
        asyncio.get_running_loop().call_soon(lane.answered, ["CAPACITY"] if number % 2 else ())

    outcome = Outcome()
    await run_lanes([ScriptedLane(refuse)], warmup=0, seconds=0.05, pace=0, outcome=outcome)
    assert abs(outcome.errors["CAPACITY"] - len(outcome.latencies) / 2) <= 1


async def test_thousands_of_paced_lanes_fit_into_one_process() -> None:
    """However slow the machine: no lane sends more than is due, and every message is accounted for."""
    lanes = [ScriptedLane(answer_at_once) for _ in range(3000)]
    outcome = Outcome()
    await run_lanes(lanes, warmup=0, seconds=0.4, pace=0.2, outcome=outcome)
    assert max(len(lane.sent) for lane in lanes) <= 3
    assert len(outcome.latencies) == sum(len(lane.sent) for lane in lanes) > 0
