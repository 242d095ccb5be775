"""Which sessions outlive their server, and what of them has still to be put in the store.

A session that does has a `Durable`. Whoever changes the session tells it; the `Ledger` of all changes (`ledger.py`) is
emptied batch by batch by somebody who has a store: `take` -> *somebody saves it* -> `saved`, `failed`, or the session
is dropped, because another server has taken it over. Of a session that has ended nothing is saved any more: what stands
in its slot is another's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from recurra_server.engine.errors import EngineError, SessionMovedError, StoreUnavailableError
from recurra_server.engine.ports import Checkpoint

if TYPE_CHECKING:
    from recurra_server.engine.ledger import Ledger
    from recurra_server.engine.sessions import Session

_PAUSES = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # seconds after the first, second ... failure: the first was not alone

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

    def never_mind(self, told: Told) -> None:
        """It need not be told any more."""
        for change in (self.change, None if self.saving is None else self.saving.change):
            if change is not None and told in change.told:
                change.told.remove(told)

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

    def failed(self, save: Save, now: float, *, at_fault: bool = False) -> None:
        """What was begun has perhaps not reached the store: it has to be saved again.

        Args:
            save: What was begun.
            now: The time in seconds.
            at_fault: Whether it may be its own fault, as the store is there: then it is put off.
        """
        self.saving, self.heard_at = None, now
        if self.session.closed:
            return
        change, newer = save.change, self.change
        if at_fault:
            change.put_off(now)
        again_at_once = at_fault and change.not_before <= now
        waiting: list[Told] = []
        if not self.is_sync and not again_at_once:  # who waits for a SYNC session does so for as long as it takes
            waiting, change.told = change.told, []
        if newer is not None:
            self._ledger.forget(newer)
            change.told += newer.told
        self.change = change
        self._ledger.put_back(change)
        for told in waiting:
            told(away(self._ledger.trouble))


@dataclass(slots=True, eq=False)
class Change:
    """What has become of a session between two of its checkpoints.

    Attributes:
        durable: Whose it is.
        at: When it began.
        told: Who waits until it is in the store.
        failures: How often it could not be saved though the store was there: then it is tried again apart from others.
        not_before: When.
    """

    durable: Durable
    at: float
    told: list[Told] = field(default_factory=list)
    failures: int = 0
    not_before: float = 0.0

    @property
    def has_failed_alone(self) -> bool:
        """Whether it could not be saved in a try of its own: the first was with others."""
        return self.failures > 1

    def put_off(self, now: float) -> None:
        """It could not be saved, alone or with others: it waits apart from them, for longer each time."""
        self.not_before = now + _PAUSES[min(self.failures, len(_PAUSES) - 1)]
        self.failures += 1


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
