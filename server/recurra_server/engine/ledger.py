"""All that is not in the store yet, of all sessions: what goes there next, and what has to be deleted there.

Somebody who has a store empties it part by part. What somebody waits for goes before the rest, and there callers take
turns. What cannot be saved though the store is there (`Change.put_off`) waits apart from all others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest
from typing import TYPE_CHECKING

from recurra_server.engine.durability import Change, Durable, Save, Told, away

if TYPE_CHECKING:
    from recurra_server.engine.accounts import Account
    from recurra_server.engine.sessions import Session


@dataclass(frozen=True, slots=True)
class BatchBound:
    """How much goes to the store in one round trip.

    Attributes:
        sessions: At most so many.
        bytes: As many of them as first make up so many bytes, and one at least.
    """

    sessions: int
    bytes: int


@dataclass(slots=True, eq=False)
class Deletion:
    """A session that was closed and may still be in the store.

    Attributes:
        store_key: Its name there.
        epoch: By which this server owned it.
        told: Who waits until it is gone.
    """

    store_key: str
    epoch: int
    told: list[Told] = field(default_factory=list)

    def never_mind(self, told: Told) -> None:
        """It need not be told any more."""
        if told in self.told:
            self.told.remove(told)


class Ledger:
    """What has changed and what was closed since the store was told.

    Attributes:
        changed: The changes, the oldest first: each until it is saved, also while that is under way.
        deletions: Of the sessions that were closed, by their names in the store: each until the store has answered.
        trouble: How it is with the store, "the store ..."; empty while it takes what is sent.
        on_hurry: Called when somebody begins to wait for a checkpoint, or a session was closed.
    """

    def __init__(self) -> None:
        self.changed: dict[Change, None] = {}
        self.deletions: dict[str, Deletion] = {}
        self.trouble = ""
        self.on_hurry: Callable[[], object] = lambda: None
        self._hurried: dict[Account, dict[Change, None]] = {}  # in the order of their turns

    @property
    def store_up(self) -> bool:
        """Whether the store is there and takes what is sent."""
        return not self.trouble

    # --- changes -------------------------------------------------------------------------

    def hurry(self, change: Change) -> None:
        """Somebody waits for this one."""
        self._hurried.setdefault(change.durable.session.owner, {})[change] = None
        self.on_hurry()

    def forget(self, change: Change) -> None:
        """It is saved, or is part of another one now, or its session has ended."""
        self.changed.pop(change, None)
        self._calm(change)

    def lag(self, now: float) -> float:
        """Seconds since the oldest change that is not in the store."""
        oldest = next(iter(self.changed), None)
        return 0.0 if oldest is None else max(0.0, now - oldest.at)

    def next_batch(
        self,
        encode: Callable[[Session], bytes | None],
        most: BatchBound,
        until: float,
        *,
        hurried_only: bool = False,
        apart: bool = False,
    ) -> list[Save]:
        """Begin to save what has changed `until` then, as many as are one batch: first what somebody waits for.

        Args:
            encode: Gives a session as bytes; None where that cannot be done: then it is put off.
            most: What is one batch.
            until: What changed later is left, and what was put off for longer.
            hurried_only: Only what somebody waits for.
            apart: Only what was put off before, else nothing of that.
        """
        source = chain(self._by_turns(), () if hurried_only else self.changed)
        due = (
            change
            for change in source
            if change.durable.saving is None
            and max(change.at, change.not_before) <= until
            and bool(change.failures) is apart
        )
        encoded: dict[Change, bytes | None] = {}
        left = most.bytes
        for change in dict.fromkeys(islice(due, most.sessions)):
            data = encoded[change] = encode(change.durable.session)
            left -= len(data or b"")
            if left <= 0:
                break
        for change in encoded:
            self._calm(change)
        saves = [change.durable.take(data) for change, data in encoded.items() if data is not None]
        for change, data in encoded.items():
            if data is None:  # only now: whoever is told may change other sessions
                change.durable.failed(change.durable.take(b""), until, at_fault=True)
        return saves

    def _by_turns(self) -> Iterator[Change]:
        """What somebody waits for: of several callers by turns, of each what was hurried first."""
        for turn in zip_longest(*self._hurried.values()):
            yield from (change for change in turn if change is not None)

    def _calm(self, change: Change) -> None:
        """Nobody has to wait for it in line any more; the next turns are those of others."""
        owner = change.durable.session.owner
        waiting = self._hurried.get(owner, {})
        if change in waiting:
            del self._hurried[owner], waiting[change]
            if waiting:
                self._hurried[owner] = waiting  # to the end

    # --- deletions -----------------------------------------------------------------------

    def delete(self, durable: Durable) -> None:
        """Have a session deleted in the store."""
        self.deletions[durable.store_key] = Deletion(durable.store_key, durable.epoch)
        self.on_hurry()

    def next_deletions(self, most: int) -> list[Deletion]:
        """The oldest, at most so many; they stay here until it is known what became of them."""
        return list(islice(self.deletions.values(), most))

    def deleted(self, deletions: Sequence[Deletion]) -> None:
        """The store has forgotten them."""
        for deletion in deletions:
            if self.deletions.get(deletion.store_key) is deletion:
                del self.deletions[deletion.store_key]
        for told in _waiting_for(deletions):
            told(None)

    def not_deleted(self, deletions: Sequence[Deletion]) -> None:
        """The store has perhaps not heard of them: they have to be deleted again."""
        for told in _waiting_for(deletions):
            told(away(self.trouble))


def _waiting_for(deletions: Sequence[Deletion]) -> list[Told]:
    """Who waits for them, and then not any more."""
    waiting: list[Told] = []
    for deletion in deletions:
        waiting, deletion.told = waiting + deletion.told, []
    return waiting
