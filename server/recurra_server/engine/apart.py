"""What could not be saved though the store was there: it is tried again one by one, apart from all others.

A try that succeeds takes a moment, and one that fails as long as the store is waited for. So it takes the least time to
try each alone, where everyone at fault fails once; halves would fail again and again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recurra_server.engine.accounts import Account
    from recurra_server.engine.durability import Change


class Apart:
    """Changes that wait to be tried alone.

    First come those that have only failed with others: most of them are not at fault, the smallest least of all. Then
    those that have failed alone, the longest ago first. Of both kinds, callers take turns, and a turn lasts until
    something of the caller's fails: so who is at fault holds up another caller once.
    """

    def __init__(self) -> None:
        self._lines: dict[Account, dict[Change, None]] = {}  # in the order of their turns

    def add(self, change: Change) -> None:
        """It has failed, so its caller's turn has ended."""
        owner = change.durable.session.owner
        line = self._lines.pop(owner, {})
        line[change] = None
        self._lines[owner] = line

    def remove(self, change: Change) -> None:
        """It is being tried, or is not to be tried any more."""
        owner = change.durable.session.owner
        line = self._lines.get(owner, {})
        line.pop(change, None)
        if not line:
            self._lines.pop(owner, None)

    def next(self, until: float) -> Change | None:
        """Take what is tried next of what is due `until` then; None where nothing is.

        Who asks again and again with the same `until` comes to an end: what fails alone is due later.
        """
        due = self._next(until)
        if due is not None:
            self.remove(due)
        return due

    def _next(self, until: float) -> Change | None:
        for line in self._lines.values():
            unsure = [change for change in line if not change.has_failed_alone and change.not_before <= until]
            if unsure:
                return min(unsure, key=lambda change: change.durable.session.nbytes)
        return next((change for line in self._lines.values() for change in line if change.not_before <= until), None)
