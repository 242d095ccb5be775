"""When a lane's next message is sent: once the one before is answered, or when it is due."""

import asyncio
import random
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Sequence

from recurra_client.load.lanes import Lane
from recurra_client.load.outcome import Outcome
from recurra_client.load.timer import Timer

_GIVE_UP_SECONDS = 10.0
_FIRST_SECONDS = 30.0
_AT_ONCE = 64  # messages that are sent before the replies get their turn
_now = time.perf_counter


class Clock:
    """When measuring begins and ends, by `time.perf_counter`."""

    def __init__(self, warmup: float, seconds: float) -> None:
        self.begin = _now() + warmup
        self.end = self.begin + seconds


async def once(lane: Lane) -> Sequence[str]:
    """Send one message and await its answer: the reasons of what failed in it.

    Raises:
        ConnectionError: None came in time.
        Exception: The lane failed, with its reason.
    """
    answer: asyncio.Future[Sequence[str]] = asyncio.get_running_loop().create_future()

    def fail(error: Exception) -> None:
        if not answer.done():
            answer.set_exception(error)

    lane.answered, lane.failed = answer.set_result, fail
    lane.send()
    try:
        async with asyncio.timeout(_FIRST_SECONDS):
            return await answer
    except TimeoutError:
        raise ConnectionError(f"the server did not answer a first message in {_FIRST_SECONDS:.0f} s") from None


async def run_lanes(lanes: Sequence[Lane], *, warmup: float, seconds: float, pace: float, outcome: Outcome) -> None:
    """Load a server, and add what comes of it to `outcome` (all but its number of steps).

    Args:
        lanes: What sends; at least one.
        warmup: Seconds before measuring begins.
        seconds: Seconds for which is measured: what is sent or, in an open loop, due in them.
        pace: Seconds from one message of a lane to its next (open loop); 0: when the one before is answered.
        outcome: Is added to while the load runs.

    Raises:
        Exception: A lane failed, with its reason.
    """
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    clock = Clock(warmup, seconds)
    load = Paced(lanes, pace, clock, outcome, finished) if pace else Closed(lanes, clock, outcome, finished)
    cpu = time.process_time()
    load.start()
    try:
        async with asyncio.timeout(clock.end - _now() + _GIVE_UP_SECONDS):
            await finished
    except TimeoutError:
        load.give_up()
    finally:
        load.stop()
    outcome.cpu += time.process_time() - cpu
    outcome.seconds = max(_now(), clock.end) - clock.begin


class _Load:
    """What both kinds share: an end."""

    def __init__(self, lanes: Sequence[Lane], clock: Clock, outcome: Outcome, finished: "asyncio.Future[None]") -> None:
        self.lanes = lanes
        self.clock = clock
        self.outcome = outcome
        self._finished = finished
        for lane in lanes:
            lane.failed = self._fail

    def finish(self) -> None:
        if not self._finished.done():
            self._finished.set_result(None)

    def _fail(self, error: Exception) -> None:
        if not self._finished.done():
            self._finished.set_exception(error)

    def record_unanswered(self, lane: Lane, sent: float) -> None:
        """A message that was given up: it has taken at least as long as until now."""
        if sent >= self.clock.begin:
            self.outcome.latencies.append(_now() - sent)
            self.outcome.errors["UNANSWERED"] += lane.sessions


class Closed(_Load):
    """Each lane sends its next message as soon as the one before is answered."""

    def start(self) -> None:
        """Send the first messages."""
        self._running = {index: _ClosedLane(self, lane, index) for index, lane in enumerate(self.lanes)}
        for lane in list(self._running.values()):
            lane.send()

    def ended(self, index: int) -> None:
        """A lane's time is up."""
        del self._running[index]
        if not self._running:
            self.finish()

    def give_up(self) -> None:
        """Count what was not answered."""
        for index, lane in self._running.items():
            self.record_unanswered(self.lanes[index], lane.began)

    def stop(self) -> None:
        """Nothing runs on."""


class _ClosedLane:
    __slots__ = ("_begin", "_end", "_errors", "_index", "_latencies", "_lane_send", "_load", "began")  # noqa: RUF023

    def __init__(self, load: Closed, lane: Lane, index: int) -> None:
        self._load = load
        self._index = index
        self._lane_send: Callable[[], None] = lane.send
        self._begin, self._end = load.clock.begin, load.clock.end
        self._latencies: array[float] = load.outcome.latencies
        self._errors: Counter[str] = load.outcome.errors
        lane.answered = self._answered

    def send(self) -> None:
        self.began = _now()
        self._lane_send()

    def _answered(self, reasons: Sequence[str]) -> None:
        now = _now()
        began = self.began
        if began >= self._begin:
            self._latencies.append(now - began)
            if reasons:
                self._errors.update(reasons)
        if now >= self._end:
            self._load.ended(self._index)
        else:
            self.began = now
            self._lane_send()


class Paced(_Load):
    """Each lane sends a message every `pace` seconds, answered or not: as a microphone or a sensor does.

    A message's time runs from when it was due, whoever is to blame that it was not sent then: a
    server that stalls cannot hide the messages that it kept waiting (coordinated omission). How late they
    were sent is kept beside it, for that is the load generator's own share.
    """

    def __init__(
        self, lanes: Sequence[Lane], pace: float, clock: Clock, outcome: Outcome, finished: "asyncio.Future[None]"
    ) -> None:
        super().__init__(lanes, clock, outcome, finished)
        self._pace = pace
        self._phases = sorted(random.uniform(0, pace) for _ in lanes)
        self._unanswered: list[deque[float]] = [deque() for _ in lanes]  # by lane: when each message was due
        self._senders = [lane.send for lane in lanes]
        self._index = 0  # of the lane that is next
        self._turn = _now()  # when this round of all lanes began
        self._waiting = 0
        self._over = False
        self._timer = Timer(self._send_due)
        for lane, dues in zip(lanes, self._unanswered, strict=True):
            lane.answered = self._answer(dues)

    def start(self) -> None:
        """Wait for the first message to be due."""
        self._turn = _now()
        self._send_due()

    def stop(self) -> None:
        """Send nothing more."""
        self._over = True
        self._timer.close()

    def give_up(self) -> None:
        """Count what was not answered."""
        for lane, dues in zip(self.lanes, self._unanswered, strict=True):
            for due in dues:
                self.record_unanswered(lane, due)

    def _send_due(self) -> None:
        now = _now()
        lateness, begin = self.outcome.lateness, self.clock.begin
        for _ in range(_AT_ONCE):
            due = self._turn + self._phases[self._index]
            if due >= self.clock.end:
                self._over = True
                if not self._waiting:
                    self.finish()
                return
            if due > now:
                break
            self._unanswered[self._index].append(due)
            self._waiting += 1
            if due >= begin:
                lateness.append(now - due)
            self._senders[self._index]()
            self._index += 1
            if self._index == len(self._phases):
                self._index = 0
                self._turn += self._pace
        self._timer.set(self._turn + self._phases[self._index] - _now())

    def _answer(self, dues: deque[float]) -> Callable[[Sequence[str]], None]:
        latencies, errors, begin = self.outcome.latencies, self.outcome.errors, self.clock.begin

        def answered(reasons: Sequence[str]) -> None:
            due = dues.popleft()
            self._waiting -= 1
            if due >= begin:
                latencies.append(_now() - due)
                if reasons:
                    errors.update(reasons)
            if self._over and not self._waiting:
                self.finish()

        return answered
