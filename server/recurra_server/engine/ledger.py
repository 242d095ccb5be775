"""All that is not in the store yet, of all sessions: what goes there next, and what has to be deleted there.

Somebody who has a store empties it part by part. What somebody waits for goes before the rest, and there callers take
turns. What cannot be saved though the store is there waits apart from all others (`apart.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge
from itertools import chain, islice
from operator import itemgetter
from typing import TYPE_CHECKING

from recurra_server.engine.apart import Apart
from recurra_server.engine.durability import Change, Durable, Told, away

if TYPE_CHECKING:
    from recurra_server.engine.accounts import Account
    from recurra_server.engine.sessions import Session


@dataclass(frozen=True, slots=True)
class BatchBound:
    """How much goes to the store in one round trip.

    Attributes:
        sessions: At most so many.
        bytes: Together at most so many bytes that they remember, but one session at least.
    """

    sessions: int
    bytes: int

    def share_of(self, session: Session) -> float:
        """How much of a batch a session takes up, of its places and of its bytes."""
        return 1 / self.sessions + session.nbytes / self.bytes


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
        self._apart = Apart()

    @property
    def store_up(self) -> bool:
        """Whether the store is there and takes what is sent."""
        return not self.trouble

    # --- changes -------------------------------------------------------------------------

    def hurry(self, change: Change) -> None:
        """Somebody waits for this one. What waits apart has turns of its own."""
        if not change.failures:
            self._hurried.setdefault(change.durable.session.owner, {})[change] = None
            self.on_hurry()

    def put_back(self, change: Change) -> None:
        """It was not saved: it has to wait again, apart from others where it may be at fault."""
        if change.failures:
            self._apart.add(change)
        elif change.told:
            self.hurry(change)

    def forget(self, change: Change) -> None:
        """It is saved, or is part of another one now, or its session has ended."""
        self.changed.pop(change, None)
        if change.failures:
            self._apart.remove(change)
        else:
            self._calm(change)

    def lag(self, now: float) -> float:
        """Seconds since the oldest change that is not in the store."""
        oldest = next(iter(self.changed), None)
        return 0.0 if oldest is None else max(0.0, now - oldest.at)

    def next_batch(self, most: BatchBound, until: float, *, hurried_only: bool = False) -> list[Change]:
        """What of that which has changed `until` then is to be saved at once: first what somebody waits for.

        What does not fit any more is passed over, and so is all behind it of the same caller. Who has the turn is
        always taken, and who was taken comes behind who was not the next time: so everybody has a turn.

        Args:
            most: What is one batch.
            until: What changed later is left.
            hurried_only: Only what somebody waits for.

        Returns:
            The changes, each to be taken (`Durable.take`) before anything else happens; none where nothing is due.
        """

        def is_due(change: Change) -> bool:
            return change.durable.saving is None and change.at <= until and not change.failures

        source = chain(self._by_turns(most, is_due), () if hurried_only else filter(is_due, self.changed))
        chosen: list[Change] = []
        passed_over: set[Account] = set()
        left = most.bytes
        for change in dict.fromkeys(islice(source, most.sessions)):
            session = change.durable.session
            if session.owner in passed_over:
                continue
            if chosen and session.nbytes > left:
                passed_over.add(session.owner)
            else:
                left -= session.nbytes
                chosen.append(change)
        for change in chosen[1:] + chosen[:1]:  # last of all who had the turn: the others had what was left
            self._calm(change)
        return chosen

    def next_alone(self, until: float) -> Change | None:
        """What could not be saved before and is tried alone next, of what is due `until` then; see `Apart.next`."""
        return self._apart.next(until)

    def _by_turns(self, most: BatchBound, is_due: Callable[[Change], bool]) -> Iterator[Change]:
        """What somebody waits for: one of the caller who has the turn, then of whoever has had least of the batch.

        Of each caller what was hurried first is first. The first one comes twice.
        """

        def with_shares(line: Iterable[Change]) -> Iterator[tuple[float, Change]]:
            share = 0.0
            for change in filter(is_due, line):
                share += most.share_of(change.durable.session)
                yield share, change

        lines = self._hurried.values()
        if len(lines) == 1:
            yield from filter(is_due, *lines)
        else:
            yield from islice(filter(is_due, chain.from_iterable(lines)), 1)
            yield from map(itemgetter(1), merge(*map(with_shares, lines), key=itemgetter(0)))

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
