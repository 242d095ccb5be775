"""Whether a model can take one more session, judged by how long its steps take now.

A server that is given more than it can compute serves nobody in time: every session's steps come late. So new
sessions are turned away while those that are open still have what they need.

How late a step is counts from when it was its turn in its session: behind steps that were sent ahead it waits for its
own caller. Steps that pile up because the server is late show it all the same, as each then waits for those of all
other sessions, too.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from recurra_server.engine.block import Block
from recurra_server.engine.errors import CapacityError
from recurra_server.engine.steps import Step

WINDOW = 1.0
"""Seconds that are looked back on."""
_SLICES = 4
_LATE_SHARE = 0.01
_EVIDENCE = 10  # late steps: fewer are an accident
_FULL = 0.75  # of a processor: nearer to 1, waiting times grow out of bounds
_LEAST_GROWTH = 4
_IDLE = 0.05
_MANY = 256  # fewer tell little of what a session costs
_SLOW = 0.25  # of the target: up to there even a busy processor serves a few sessions well


@dataclass(slots=True)
class _Slice:
    """What was seen in a part of the window."""

    number: int
    steps: int = 0
    late: int = 0
    slow: int = 0

    @property
    def lateness(self) -> float:
        """How many steps were late, as a share of those that may be; 0 where they are few."""
        return self.late / (_LATE_SHARE * self.steps) if self.late >= _EVIDENCE else 0.0


class Admission:
    """Watches the steps of one model.

    Sessions are refused while more than 1 % of the last second's steps took longer than the target. What was opened
    since the load was measured last has not shown yet what it costs; so only as many are taken until then as
    there is room for if they are like those that are open.

    Args:
        target: Seconds from when it is a step's turn in its session to its answer, for each of its time steps.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self._busy = 0.0
        self._measured: int | None = None  # how many sessions were open when the load was measured
        self._before = 0
        self._mean = 0.0  # and how many on average since it was measured before
        self._slices: deque[_Slice] = deque()

    def observe(self, steps: Sequence[Step | Block], now: float) -> None:
        """Take note of what was answered: steps, or a block once for each of its rows."""
        current = self._current(now)
        current.steps += len(steps)
        shares = [(now - step.ready) / step.count for step in steps]
        current.late += sum([share > self.target for share in shares])
        current.slow += sum([share > self.target * _SLOW for share in shares])

    def observe_load(self, busy: float) -> None:
        """Take note of how much of a processor was in use lately: of the thread that was used most."""
        self._busy = busy
        self._measured = None

    def check(self, sessions: int, now: float) -> None:
        """Take one more session beside those that are open.

        Raises:
            CapacityError: Those that are open need what there is.
        """
        lately = self._lately(now)
        if lately.lateness > 1:
            share = lately.late / lately.steps
            self._refuse(f"{share:.0%} of the last second's steps took longer than {self.target * 1e3:g} ms")
        if self._measured is None:
            self._mean = (self._before + sessions) / 2
            self._measured = self._before = sessions
        if sessions - self._measured >= self._room(self._measured, lately):
            self._refuse(f"{self._busy:.0%} of a processor is in use by {self._measured} sessions")

    def used(self, sessions: int, now: float) -> float:
        """How much of what there is the open sessions use; at 1, its most, new ones are refused, or all but a few.

        Of the late steps that are allowed, or of the processor, whichever is more.
        """
        lately = self._lately(now)
        busy = self._busy / _FULL if self._is_telling(sessions, lately) else 0.0
        return min(1.0, max(lately.lateness, busy))

    def _is_telling(self, sessions: int, lately: _Slice) -> bool:
        """Whether the load says what a session costs."""
        slow = lately.slow > _LATE_SHARE * lately.steps
        return self._busy > _IDLE and lately.steps > 0 and (sessions >= _MANY or slow)

    def _room(self, sessions: int, lately: _Slice) -> float:
        """How many can be opened beside those that were open when the load was measured."""
        if not self._is_telling(sessions, lately):
            return float("inf")
        return max(_LEAST_GROWTH, self._mean * _FULL / self._busy - sessions)

    def _refuse(self, why: str) -> None:
        raise CapacityError(
            f"no new sessions for now, for those that are open need what there is: {why}",
            retry_after=WINDOW,
            bound="latency",
            limit=self.target,
        )

    def _lately(self, now: float) -> _Slice:
        """What was seen in all of the window."""
        current, parts = self._current(now), self._slices
        return _Slice(
            current.number,
            steps=sum(part.steps for part in parts),
            late=sum(part.late for part in parts),
            slow=sum(part.slow for part in parts),
        )

    def _current(self, now: float) -> _Slice:
        number = int(now * _SLICES / WINDOW)
        slices = self._slices
        while slices and slices[0].number <= number - _SLICES:
            slices.popleft()
        if not slices or slices[-1].number != number:
            slices.append(_Slice(number))
        return slices[-1]
