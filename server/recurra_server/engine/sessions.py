"""A session: one sequence in progress, and the rule by which its steps are numbered."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING, Final, NamedTuple

from recurra_server.engine.errors import (
    EngineError,
    SessionChangedError,
    SessionIdError,
    SessionNotFoundError,
    StateNotFiniteError,
    StepGapError,
    StepNotHeldError,
    shown,
)
from recurra_server.engine.steps import Step

if TYPE_CHECKING:
    from recurra_server.engine.accounts import Account
    from recurra_server.engine.block import Block
    from recurra_server.engine.durability import Durable
    from recurra_server.engine.served_model import ServedModel

Action = Callable[[], None]
LONGEST_ID: Final = 128
_ID = re.compile(rf"[A-Za-z0-9._:-]{{1,{LONGEST_ID}}}")
_SMALL_REPLY = 1024  # bytes: no more than a session takes anyway


class KeptReply(NamedTuple):
    """The reply to a session's last step, which was numbered, for a caller who asks again.

    Attributes:
        number, steps: Its first step, and how many there were.
        outputs: What was answered.
        names: What of it was asked for by name; empty: the default outputs.
    """

    number: int
    steps: int
    outputs: tuple[bytes, ...]
    names: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where a session stands: at no other time of its life is it there again.

    Attributes:
        era: How often it had been reset or rewound: the same number of steps may come again after that.
        applied: Number of time steps applied.
    """

    era: int
    applied: int


class Session:
    """One sequence in progress. Its states live in its model's slot table.

    Attributes:
        id: The name callers know it by; None where nobody does (a `Predict`).
        owner: Whose it is.
        model: The version of the model that it began with and stays on.
        slot: Its row in the model's slot table.
        applied: Number of time steps applied.
        era: How often it was reset or rewound.
        current: What is in flight: a step, a block of steps, or None.
        waiting: Steps, and actions that need the session at rest, in order of arrival.
        last_reply: The last step's reply, for a retry; None where that step had no number, or `keep` had no room.
        ended: Why it has ended, as whoever still holds it is told; None while it is open. It then owns no slot, or
            gives it up when `current` returns.
        durable: What is known of its checkpoints; None where it ends with the server.
        group: Only sessions of the same group can share a model call: they agree in what the graph takes once a call.
    """

    __slots__ = (
        "_reply_bytes",
        "applied",
        "current",
        "durable",
        "ended",
        "era",
        "group",
        "id",
        "last_reply",
        "model",
        "owner",
        "slot",
        "waiting",
    )

    def __init__(
        self, session_id: str | None, owner: Account, model: ServedModel, slot: int, group: bytes = b""
    ) -> None:
        self.id = session_id
        self.owner = owner
        self.model = model
        self.slot = slot
        self.group = group
        self.applied = 0
        self.era = 0
        self.current: Step | Block | None = None
        self.waiting: deque[Step | Action] | None = None
        self.last_reply: KeptReply | None = None
        self._reply_bytes = 0  # of it, as they count for the owner
        self.durable: Durable | None = None
        self.ended: EngineError | None = None

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self.ended is not None

    @property
    def place(self) -> Place:
        """Where it stands."""
        return Place(self.era, self.applied)

    @property
    def nbytes(self) -> int:
        """Bytes that it remembers: what is in its slot, and the reply kept for a retry where that is not small."""
        return self.model.slots.row_bytes + self._reply_bytes

    def check_open(self) -> None:
        """Make sure that it has not ended.

        Raises:
            EngineError: It has; as `ending`.
        """
        if self.ended is not None:
            raise self.ending()

    def ending(self) -> EngineError:
        """Why it has ended: SESSION_NOT_FOUND where it is gone, something else where it goes on elsewhere.

        A new error each time: one that is raised again and again would gather the tracebacks of all.
        """
        assert self.ended is not None  # noqa: S101 - only of a session that has ended
        return copy(self.ended)

    def keep(self, reply: KeptReply | None) -> None:
        """Keep the reply to the last step, in place of the one before.

        It counts as what the owner's sessions remember, and is not kept where there is no room for it: the step has
        been applied, so it cannot be refused any more. A small one is always kept.
        """
        size = 0 if reply is None else sum(map(len, reply.outputs))
        counted, owner = size if size > _SMALL_REPLY else 0, self.owner
        owner.state_bytes -= self._reply_bytes
        if counted and not owner.has_room(counted):
            reply, counted = None, 0
        owner.state_bytes += counted
        self.last_reply, self._reply_bytes = reply, counted

    def count_from(self, applied: int, reply: KeptReply | None, now: float) -> None:
        """Its states, at rest, were put back to where so many steps were applied, and this was the last one's reply."""
        self.era += 1
        self.applied = applied
        self.keep(reply)
        if self.durable is not None:
            self.durable.went_back(now)

    def check_applied(self, step: int) -> None:
        """Make sure of a step that somebody knows to be applied.

        Raises:
            EngineError: The session has ended; as `check_open`.
            StepGapError: It is not.
        """
        self.check_open()
        if self.applied < step:
            expected = self.applied + 1
            raise StepGapError(
                f"step {step} is not applied here; send the steps from {expected} on again",
                session_id=self.id,
                step=step,
                expected_step=expected,
            )

    def admit(self, step: Step) -> bool:
        """Decide by its number what becomes of a step: True to apply it, False where the kept reply answers it.

        Raises:
            StepGapError: The number is past the next one.
            StepNotHeldError: It was applied before and its reply is not kept.
            SessionChangedError: It has no number but a place to go on from, and that is not where the session stands.
        """
        expected = self.applied + 1
        if step.number == expected:
            return True
        if not step.number:
            if step.after is not None and step.after != self.place:
                raise _changed(self)
            return True
        if step.number > expected:
            raise StepGapError(
                f"step {step.number} is ahead of its turn; the next one is {expected}",
                session_id=self.id,
                step=step.number,
                expected_step=expected,
            )
        kept, names = self.last_reply, () if step.choice is None else step.choice.names
        if kept is not None and (kept.number, kept.steps, kept.names) == (step.number, step.count, names):
            step.outputs = kept.outputs
            step.last_number = kept.number + kept.steps - 1
            step.replayed = True
            return False
        raise StepNotHeldError(
            f"step {step.number} was applied before and its reply is not kept; go on with step {expected}",
            session_id=self.id,
            step=step.number,
            expected_step=expected,
        )


def not_found(session_id: str | None, elsewhere: str = "") -> SessionNotFoundError:
    """The error for a session that is not there, nor perhaps `elsewhere`."""
    return SessionNotFoundError(
        f"there is no session {shown(session_id or '')}; it was closed or never opened{elsewhere}: open one first",
        session_id=session_id,
    )


def _changed(session: Session) -> SessionChangedError:
    return SessionChangedError(
        "the session was reset, rewound or stepped by others meanwhile; go on from where it stands, "
        f"with step {session.applied + 1}",
        session_id=session.id,
        expected_step=session.applied + 1,
    )


def state_not_finite(session: Session) -> StateNotFiniteError:
    """The error for a step that would poison a session for good."""
    number = session.applied + 1
    return StateNotFiniteError(
        f"step {number} would make the session's memory NaN or infinite; it was not applied: "
        "leave it out or reset the session",
        session_id=session.id,
        step=number,
    )


def is_id(text: str) -> bool:
    """Whether a session can have this id."""
    return _ID.fullmatch(text) is not None


def check_id(text: str) -> None:
    """Refuse what no session can have for its id.

    Raises:
        SessionIdError: This.
    """
    if not is_id(text):
        raise SessionIdError(
            f"session id {shown(text)} must be 1 to {LONGEST_ID} characters of A-Z a-z 0-9 . _ : -",
            session_id=text[:64],
        )
