"""What could not be saved though the store was there: it is tried again one by one, apart from all others.

A try that succeeds takes a moment, and one that fails as long as the store is waited for. So it takes the least time to
try each alone, where everyone at fault fails once; halves would fail again and again.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recurra_server.engine.accounts import Account
    from recurra_server.engine.durability import Change

# By what it goes before others, then by when it came. Heaps, as there may be as many as a server has sessions.
_Heap = list[tuple[float, int, "Change"]]


class _Line:
    """What one caller has here; what was removed stays in its heap until it comes first there.

    Attributes:
        unsure: What has only failed with others, the smallest first.
        faulty: What has failed alone, what is due the soonest first.
    """

    __slots__ = ("faulty", "unsure")

    def __init__(self) -> None:
        self.unsure: _Heap = []
        self.faulty: _Heap = []


class Apart:
    """Changes that wait to be tried alone.

    First come those that have only failed with others: most of them are not at fault, the smallest least of all. Then
    those that have failed alone, when they are due. Of both kinds, callers take turns, and a turn lasts until
    something of the caller's fails: so who is at fault holds up another caller once.
    """

    def __init__(self) -> None:
        self._lines: dict[Account, _Line] = {}  # in the order of their turns
        self._here: dict[Change, int] = {}  # with when it came
        self._count = count()

    def add(self, change: Change) -> None:
        """It has failed, so its caller's turn has ended."""
        session = change.durable.session
        line = self._lines[session.owner] = self._lines.pop(session.owner, _Line())
        came = self._here[change] = next(self._count)
        if change.has_failed_alone:
            heappush(line.faulty, (change.not_before, came, change))
        else:
            heappush(line.unsure, (session.nbytes, came, change))

    def remove(self, change: Change) -> None:
        """It is not to be tried any more."""
        self._here.pop(change, None)

    def next(self, until: float) -> Change | None:
        """Take what is tried next of what is due `until` then; None where nothing is.

        Who asks again and again with the same `until` comes to an end: what fails alone is due later.
        """
        for line in self._lines.values():
            if self._first(line.unsure) is not None:
                return self._take(line.unsure)
        for line in self._lines.values():
            first = self._first(line.faulty)
            if first is not None and first.not_before <= until:
                return self._take(line.faulty)
        self._lines = {owner: line for owner, line in self._lines.items() if line.unsure or line.faulty}
        return None

    def _first(self, heap: _Heap) -> Change | None:
        while heap and self._here.get(heap[0][2]) != heap[0][1]:
            heappop(heap)
        return heap[0][2] if heap else None

    def _take(self, heap: _Heap) -> Change:
        _, _, change = heappop(heap)
        del self._here[change]
        return change
