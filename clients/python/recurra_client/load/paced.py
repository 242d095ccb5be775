"""The open loop: a lane's next message is sent when it is due, answered or not."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from recurra_client.load.frames import StreamEndedError
from recurra_client.load.lanes import Lane, RefusedError, UnansweredError
from recurra_client.load.loops import UNANSWERED, Load, Timing, open_or_count
from recurra_client.load.outcome import Outcome
from recurra_client.load.timer import Timer

_AT_ONCE: Final = 64  # messages that are sent before the replies get their turn
_now = time.perf_counter


async def run_paced(lanes: Sequence[Lane], timing: Timing, outcome: Outcome, *, pace: float, arrivals: float) -> None:
    """Load a server: each lane sends a message every `pace` seconds, as a microphone or a sensor does.

    Their sessions are opened one by one while those that are open step already, as callers come to a server. Those that
    it has no capacity for, or is too busy to answer, are counted as refused and left out; measuring begins when all
    have come.

    A message's time runs from when it was due, whoever is to blame that it was not sent then: a
    server that stalls cannot hide the messages that it kept waiting (coordinated omission). How late they
    were sent is kept beside it, for that is the load generator's own share.

    Args:
        lanes: What sends; not yet open, and at least one.
        timing: When is measured, once all have come.
        outcome: What comes of it is added here while the load runs (all but the number of steps).
        pace: Seconds from one message of a lane to its next.
        arrivals: Lanes that are opened in a second, at random times.

    Raises:
        RefusedError: The server took none, or refused some for another reason than its capacity.
        Exception: A lane failed, with its reason.
    """
    load = _Paced(pace, outcome)
    try:
        await _arrive(load, lanes, arrivals)
        await load.measure(timing)
    finally:
        load.stop()


async def _arrive(load: "_Paced", lanes: Sequence[Lane], arrivals: float) -> None:
    """Open lanes at random times, and let each join the load."""
    begin = _now()
    times = sorted(random.uniform(0, len(lanes) / arrivals) for _ in lanes)

    async def join(lane: Lane) -> None:
        try:
            if await open_or_count(lane, load.outcome):
                load.join(lane)
        except (UnansweredError, StreamEndedError) as error:
            # gRPC itself cancels a call that a busy server has not even begun to serve within 30 s.
            if isinstance(error, StreamEndedError) and error.code != "CANCELLED":
                raise
            load.outcome.refused[UNANSWERED] += lane.sessions

    try:
        async with asyncio.TaskGroup() as group:
            for lane, at in zip(lanes, times, strict=True):
                await asyncio.sleep(begin + at - _now())
                group.create_task(join(lane))
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    if not load.lanes:
        raise RefusedError(next(iter(load.outcome.refused)))


class _PacedLane:
    """A lane: when it is due next, and when each of its messages was due that is not answered."""

    __slots__ = ("due", "lane", "send", "unanswered")

    def __init__(self, lane: Lane, due: float) -> None:
        self.lane = lane
        self.due = due
        self.send = lane.send
        self.unanswered: deque[float] = deque()


class _Paced(Load):
    """Lanes in the order in which they are due: the first is sent and goes to the end, for all have the same pace."""

    def __init__(self, pace: float, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.lanes: deque[_PacedLane] = deque()
        self._pace = pace
        self._waiting = 0
        self._over = False
        self._timer = Timer(self._send_due)

    def join(self, lane: Lane) -> None:
        """Send a lane's first message a pace from now, and so on."""
        lanes, now = self.lanes, _now()
        # Where the loop lags behind, from where it stands: so that all stay in order.
        joined = _PacedLane(lane, (min(now, lanes[0].due) if lanes else now) + self._pace)
        lane.answered, lane.failed = self._answer(joined), self.fail
        lanes.append(joined)
        if len(lanes) == 1:
            self._send_due()

    def stop(self) -> None:
        """Send nothing more."""
        self._over = True
        self._timer.close()
        self.finish()

    def give_up(self) -> None:
        for lane in self.lanes:
            for due in lane.unanswered:
                self.record_unanswered(lane.lane, due)

    def _send_due(self) -> None:
        now = _now()
        lanes, pace, begin, end = self.lanes, self._pace, self.begin, self.end
        lateness = self.outcome.lateness
        for _ in range(_AT_ONCE):
            lane = lanes[0]
            due = lane.due
            if due >= end:
                self._over = True
                if not self._waiting:
                    self.finish()
                return
            if due > now:
                break
            lane.due = due + pace
            lanes.rotate(-1)
            lane.unanswered.append(due)
            self._waiting += 1
            if due >= begin:
                lateness.append(now - due)
            lane.send()
        self._timer.set(lanes[0].due - _now())

    def _answer(self, lane: _PacedLane) -> Callable[[Sequence[str]], None]:
        latencies, errors, unanswered = self.outcome.latencies, self.outcome.errors, lane.unanswered

        def answered(reasons: Sequence[str]) -> None:
            due = unanswered.popleft()
            self._waiting -= 1
            if due >= self.begin:
                latencies.append(_now() - due)
                if reasons:
                    errors.update(reasons)
            if self._over and not self._waiting:
                self.finish()

        return answered
