"""Which sessions outlive their server, and what of them has still to be put in the store.

A session that does has a `Durable`. Whoever changes the session tells it; the `Ledger` of all that have changed is
emptied batch by batch by somebody who has a store: `take` -> *somebody saves it* -> `saved`, `failed`, or the
session is dropped, because another server has taken it over.
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
        changed_at: When it changed first since the last checkpoint was taken; None where it has not.
        saving: The checkpoint that is on its way.
        heard_at: When the store answered last.
    """

    __slots__ = (
        "_ledger",
        "_told",
        "changed_at",
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
        self.changed_at: float | None = None
        self.saving: Save | None = None
        self.heard_at = 0.0
        self._ledger = ledger
        self._told: list[Told] = []

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
        return self.changed_at is None and self.saving is None

    def changed(self, now: float) -> None:
        """The session is not as in its last checkpoint any more."""
        if self.changed_at is None:
            self.changed_at = now
            self._ledger.changed[self] = None

    def went_back(self, now: float) -> None:
        """The session counts its steps anew: none of those is durable yet, whatever is on its way."""
        self.step = 0
        if self.saving is not None:
            self.saving.step = 0
        self.changed(now)

    def when_saved(self, told: Told) -> None:
        """Have it told when the session is saved as it stands: at once where it is."""
        if self.changed_at is not None:
            self._told.append(told)
            self._ledger.hurry(self)
        elif self.saving is not None:
            self.saving.told.append(told)
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

    def end(self, error: EngineError) -> None:
        """The session has ended: whoever waits is told so."""
        self._ledger.forget(self)
        waiting, self._told = self._told, []
        if self.saving is not None:
            waiting, self.saving.told = self.saving.told + waiting, []
        for told in waiting:
            told(error)

    def take(self, data: bytes) -> Save:
        """Begin to save the session."""
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
        assert self.changed_at is not None  # noqa: S101 - else there is nothing to save
        self.saving = Save(self, checkpoint, session.applied, self.changed_at, self._told)
        self.changed_at, self._told = None, []
        return self.saving

    def saved(self, save: Save, now: float) -> None:
        """What was begun is in the store."""
        self.saving, self.heard_at = None, now
        if not self.session.closed:
            self.step = save.step
        for told in save.told:
            told(None)

    def failed(self, save: Save, now: float) -> None:
        """What was begun has perhaps not reached the store: it has to be saved again."""
        self.saving, self.heard_at = None, now
        if self.session.closed:
            return
        if self.is_sync:
            self._told = save.told + self._told  # they wait for as long as it takes
        else:
            for told in save.told:
                told(away(self._ledger.trouble))
        if self.changed_at is None:
            self._ledger.changed[self] = None
        self.changed_at = save.changed_at
        if self._told:
            self._ledger.hurry(self)


@dataclass(slots=True, eq=False)
class Save:
    """A checkpoint on its way to the store.

    Attributes:
        durable: Whose it is.
        checkpoint: What is saved.
        step: Number of steps applied in it.
        changed_at: Since when there was something to save.
        told: Who waits for it.
    """

    durable: Durable
    checkpoint: Checkpoint
    step: int
    changed_at: float
    told: list[Told] = field(default_factory=list)


class Ledger:
    """All sessions that are not in the store as they stand, and those that are to be deleted there.

    Attributes:
        changed: What has changed, the longest ago first.
        deletions: Epoch and idle timeout in seconds of each session that was closed, by its name in the store.
        trouble: How it is with the store, "the store ..."; empty while it takes what is sent.
        on_hurry: Called when somebody begins to wait for a checkpoint, or a session was closed.
    """

    def __init__(self) -> None:
        self.changed: dict[Durable, None] = {}
        self.deletions: dict[str, tuple[int, float]] = {}
        self.trouble = ""
        self.on_hurry: Callable[[], object] = lambda: None
        self._hurried: dict[Durable, None] = {}

    @property
    def store_up(self) -> bool:
        """Whether the store took what was sent last."""
        return not self.trouble

    def hurry(self, durable: Durable) -> None:
        """Somebody waits for this one."""
        self._hurried[durable] = None
        self.on_hurry()

    def forget(self, durable: Durable) -> None:
        """Its session has ended."""
        self.changed.pop(durable, None)
        self._hurried.pop(durable, None)

    def delete(self, durable: Durable, idle_timeout: float) -> None:
        """Have a session deleted in the store."""
        self.deletions[durable.store_key] = durable.epoch, idle_timeout
        self.on_hurry()

    def lag(self, now: float) -> float:
        """Seconds since the change that waits longest for its checkpoint."""
        oldest = next(iter(self.changed), None)
        return 0.0 if oldest is None or oldest.changed_at is None else max(0.0, now - oldest.changed_at)

    def next_batch(
        self, encode: Callable[[Session], bytes], most: int, until: float, *, hurried_only: bool
    ) -> list[Save]:
        """Begin to save what has changed `until` then, at most so many sessions: first what somebody waits for."""
        source = chain(self._hurried, () if hurried_only else self.changed)
        due = (durable for durable in source if durable.saving is None and (durable.changed_at or 0.0) <= until)
        batch: list[Save] = []
        for durable in dict.fromkeys(islice(due, most)):
            self.forget(durable)
            batch.append(durable.take(encode(durable.session)))
        return batch


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
