"""Which sessions outlive their server, and what of them has still to be put in the store.

A session that does has a `Durable`. Whoever changes the session tells it; the `Ledger` of all changes is emptied batch
by batch by somebody who has a store: `take` -> *somebody saves it* -> `saved`, `failed`, or the session is dropped,
because another server has taken it over. Of a session that has ended nothing is saved any more: what stands in its
slot is another's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, islice
from typing import TYPE_CHECKING

from recurra_server.engine.errors import EngineError, SessionMovedError, StoreUnavailableError
from recurra_server.engine.ports import Checkpoint

if TYPE_CHECKING:
    from recurra_server.engine.sessions import Session

# Is told once that a session is saved as it stood when this was asked for, or why it is not.
Told = Callable[[EngineError | None], None]


class Durability(Enum):
    """What of a session outlives its server."""

    EPHEMERAL = 1  # nothing
    ASYNC = 2  # all steps but those of the last moments, which can be sent again
    SYNC = 3  # every step that was answered


class Durable:
    """What is known of the checkpoints of one session.

    Attributes:
        session: Whose they are.
        durability: ASYNC or SYNC.
        epoch: The number by which this server owns the session.
        revision: Number of the last checkpoint that was taken.
        step: The last durable step: number of steps applied in the newest checkpoint that is known to be in the store.
        change: What has changed since the last checkpoint was taken; None where nothing has.
        saving: The checkpoint that is on its way.
        heard_at: When the store answered last.
    """

    __slots__ = (
        "_ledger",
        "change",
        "durability",
        "epoch",
        "heard_at",
        "revision",
        "saving",
        "session",
        "step",
    )

    def __init__(self, ledger: Ledger, session: Session, durability: Durability, checkpoint: Checkpoint) -> None:
        self.session = session
        self.durability = durability
        self.epoch = checkpoint.epoch
        self.revision = checkpoint.revision
        self.step = session.applied
        self.change: Change | None = None
        self.saving: Save | None = None
        self.heard_at = 0.0
        self._ledger = ledger

    @property
    def store_key(self) -> str:
        """The session's name in the store."""
        return self.session.owner.store_key(self.session.id or "")

    @property
    def is_sync(self) -> bool:
        """Whether a step is answered only when it is durable."""
        return self.durability is Durability.SYNC

    @property
    def is_saved(self) -> bool:
        """Whether the session is in the store as it stands."""
        return self.change is None and self.saving is None

    def changed(self, now: float) -> None:
        """The session is not as in its last checkpoint any more."""
        if self.change is None and not self.session.closed:
            self.change = Change(self, now)
            self._ledger.changed[self.change] = None

    def went_back(self, now: float) -> None:
        """The session counts its steps anew: none of those is durable yet, whatever is on its way."""
        self.step = 0
        if self.saving is not None:
            self.saving.step = 0
        self.changed(now)

    def when_saved(self, told: Told) -> None:
        """Have it told when the session is saved as it stands: at once where it is, or has ended."""
        if self.session.closed:
            told(self.session.ending())
        elif self.change is not None:
            self.change.told.append(told)
            self._ledger.hurry(self.change)
        elif self.saving is not None:
            self.saving.change.told.append(told)
        else:
            told(None)

    def check_store(self) -> None:
        """Before a step: it must not be applied where it cannot be answered.

        Raises:
            StoreUnavailableError: It is of a SYNC session, and the store is away.
        """
        if self.is_sync and not self._ledger.store_up:
            raise StoreUnavailableError(
                f"the store of checkpoints {self._ledger.trouble}, and a SYNC session has to wait for it; "
                "the step was not applied: send it again",
                retry_after=1.0,
                session_id=self.session.id,
            )

    def make_sure(self, now: float) -> None:
        """Have the session saved before its caller is told of a step that does not fit; `when_saved` says how it went.

        A server from which a session was taken comes to know only when it saves. If callers come back to it
        before that, it must not tell them what it expects: they would take the session for lost.

        Raises:
            StoreUnavailableError: The store is away, so it cannot be known whose the session is.
        """
        if not self._ledger.store_up:
            raise StoreUnavailableError(
                "this does not fit the session as it is here, and whether another server took it over is not known: "
                f"the store of checkpoints {self._ledger.trouble}; nothing was applied, so send it again",
                retry_after=1.0,
                session_id=self.session.id,
            )
        self.changed(now)

    def end(self) -> None:
        """The session has ended: whoever waits is told so, as is whoever asks from now on."""
        waiting: list[Told] = []
        for change in (None if self.saving is None else self.saving.change, self.change):
            if change is not None:
                self._ledger.forget(change)
                waiting, change.told = waiting + change.told, []
        self.change = None
        for told in waiting:
            told(self.session.ending())

    def take(self, data: bytes) -> Save:
        """Begin to save the session, which has changed."""
        change, self.change = self.change, None
        assert change is not None  # noqa: S101 - else there is nothing to save
        self.revision += 1
        session, slots = self.session, self.session.model.slots
        checkpoint = Checkpoint(
            store_key=self.store_key,
            epoch=self.epoch,
            revision=self.revision,
            durability=self.durability.value,
            idle_timeout=float(slots.idle_timeout[session.slot]),
            snapshot=data,
        )
        self.saving = Save(change, checkpoint, session.applied)
        return self.saving

    def saved(self, save: Save, now: float) -> None:
        """What was begun is in the store."""
        self.saving, self.heard_at = None, now
        self._ledger.forget(save.change)
        if not self.session.closed:
            self.step = save.step
        for told in save.change.told:
            told(None)

    def failed(self, save: Save, now: float) -> None:
        """What was begun has perhaps not reached the store: it has to be saved again."""
        self.saving, self.heard_at = None, now
        if self.session.closed:
            return
        change, newer = save.change, self.change
        waiting: list[Told] = []
        if not self.is_sync:  # whoever waits for a SYNC session does so for as long as it takes
            waiting, change.told = change.told, []
        if newer is not None:
            self._ledger.forget(newer)
            change.told += newer.told
        self.change = change
        if change.told:
            self._ledger.hurry(change)
        for told in waiting:
            told(away(self._ledger.trouble))


@dataclass(slots=True, eq=False)
class Change:
    """What has become of a session between two of its checkpoints.

    Attributes:
        durable: Whose it is.
        at: When it began.
        told: Who waits until it is in the store.
    """

    durable: Durable
    at: float
    told: list[Told] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Save:
    """A checkpoint on its way to the store.

    Attributes:
        change: What is saved by it.
        checkpoint: The session after that.
        step: Number of steps applied in it.
    """

    change: Change
    checkpoint: Checkpoint
    step: int

    @property
    def durable(self) -> Durable:
        """Whose it is."""
        return self.change.durable


@dataclass(frozen=True, slots=True)
class BatchBound:
    """How much goes to the store in one round trip.

    Attributes:
        sessions: At most so many.
        bytes: As many of them as first make up so many bytes, and one at least.
    """

    sessions: int
    bytes: int


class Ledger:
    """All that is not in the store yet, and the sessions that are to be deleted there.

    Attributes:
        changed: The changes, the oldest first: each until it is saved, also while that is under way.
        deletions: The epoch of each session that was closed, by its name in the store.
        trouble: How it is with the store, "the store ..."; empty while it takes what is sent.
        on_hurry: Called when somebody begins to wait for a checkpoint, or a session was closed.
    """

    def __init__(self) -> None:
        self.changed: dict[Change, None] = {}
        self.deletions: dict[str, int] = {}
        self.trouble = ""
        self.on_hurry: Callable[[], object] = lambda: None
        self._hurried: dict[Change, None] = {}

    @property
    def store_up(self) -> bool:
        """Whether the store took what was sent last."""
        return not self.trouble

    def hurry(self, change: Change) -> None:
        """Somebody waits for this one."""
        self._hurried[change] = None
        self.on_hurry()

    def forget(self, change: Change) -> None:
        """It is saved, or is part of another one now, or its session has ended."""
        self.changed.pop(change, None)
        self._hurried.pop(change, None)

    def delete(self, durable: Durable) -> None:
        """Have a session deleted in the store."""
        self.deletions[durable.store_key] = durable.epoch
        self.on_hurry()

    def lag(self, now: float) -> float:
        """Seconds since the oldest change that is not in the store."""
        oldest = next(iter(self.changed), None)
        return 0.0 if oldest is None else max(0.0, now - oldest.at)

    def next_batch(
        self, encode: Callable[[Session], bytes], most: BatchBound, until: float, *, hurried_only: bool
    ) -> list[Save]:
        """Begin to save what has changed `until` then, as many as are one batch: first what somebody waits for."""
        source = chain(self._hurried, () if hurried_only else self.changed)
        due = (change for change in source if change.durable.saving is None and change.at <= until)
        encoded: dict[Change, bytes] = {}
        left = most.bytes
        for change in dict.fromkeys(islice(due, most.sessions)):
            encoded[change] = encode(change.durable.session)
            left -= len(encoded[change])
            if left <= 0:
                break
        for change in encoded:  # only now, when nothing can fail any more
            self._hurried.pop(change, None)
        return [change.durable.take(data) for change, data in encoded.items()]


def away(trouble: str) -> StoreUnavailableError:
    """The error for what needs the store while it is in trouble: "the store ..."."""
    return StoreUnavailableError(
        f"the store of checkpoints {trouble or 'does not answer'}; try again later, or use an EPHEMERAL session",
        retry_after=1.0,
    )


def moved(session_id: str | None) -> SessionMovedError:
    """The error for a session that another server has taken over."""
    return SessionMovedError(
        f"session {session_id!r} was taken over by another server; go on there, or here after the next try",
        retry_after=0.0,
        session_id=session_id,
    )
