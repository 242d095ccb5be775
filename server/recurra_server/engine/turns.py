"""Whose turn it is: one step of a session is in flight, the others wait behind it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from recurra_server.engine.errors import (
    CapacityError,
    EngineError,
    StepGapError,
    StepNotHeldError,
    StoreUnavailableError,
)
from recurra_server.engine.limits import Limits
from recurra_server.engine.outputs import check_size
from recurra_server.engine.scheduler import Scheduler
from recurra_server.engine.sessions import Action, Session
from recurra_server.engine.slots import SlotTable
from recurra_server.engine.steps import Step

if TYPE_CHECKING:
    from recurra_server.engine.block import Block


class Turns:
    """The steps of one model from when they are accepted until they are answered.

    Attributes:
        depth: Steps accepted and not yet answered.
        outcomes: Steps answered so far, by outcome: "ok", "replayed", "cancelled" or the error's reason.
        on_ready: Called when a step becomes ready outside of `submit` and of a batch's end: a batch is to be asked for.
    """

    def __init__(self, limits: Limits, scheduler: Scheduler, slots: SlotTable[Session]) -> None:
        self.depth = 0
        self.outcomes: Counter[str] = Counter()
        self.on_ready: Action = _nothing
        self._limits = limits
        self._scheduler = scheduler
        self._slots = slots

    def submit(self, step: Step, now: float) -> None:
        """Accept a step: it begins if its session is at rest, else it waits for its turn.

        Raises:
            EngineError: The session has ended; as `Session.check_open`.
            InvalidRequestError: Its answer would be too large.
            CapacityError: Too many steps wait, of this session or of the model.
        """
        session = step.session
        session.check_open()
        if step.count > 1:
            check_size(step.specs, step.count, self._limits.max_answer_mb)
        free = self._limits.max_queue - self.depth
        if free <= 0:
            raise _too_many("steps wait already; the server cannot keep up", "max_queue", self._limits.max_queue)
        owner = session.owner
        if owner.key and owner.queued >= free:  # who holds no more than is free leaves room for others
            raise _too_many("of your steps wait already; read their replies first", "fair_share", owner.queued)
        if session.current is None:
            self.depth += 1
            owner.queued += 1
            self._begin(step, now)
            return
        self._line(session).append(step)
        self.depth += 1
        owner.queued += 1

    def at_rest(self, session: Session, action: Action) -> None:
        """Call `action` once no step of the session is in flight or waits before it; also when it has ended.

        Raises:
            CapacityError: Too many steps and actions of this session wait.
        """
        if session.current is None:
            action()
        else:
            self._line(session).append(action)

    def over(self, step: Step, now: float) -> None:
        """A step in flight has succeeded, or has `error` set: answer it, and let the next one begin."""
        session = step.session
        session.current = None
        if step.slot != session.slot:
            self._slots.release(step.slot)
        self._answer(step)
        if session.waiting:
            self._go_on(session, now)

    def keep(self, step: Step, now: float) -> None:
        """A step in flight of a durable session has succeeded: answer it, or in SYNC have it saved before that."""
        durable = step.session.durable
        assert durable is not None  # noqa: S101 - only such a session has its steps kept
        durable.changed(now)
        if durable.is_sync:
            self._hold(step)
        else:
            self.over(step, now)

    def fail(self, step: Step, error: EngineError, now: float) -> None:
        """A step in flight has failed: the session is as it was before it."""
        step.error = error
        self._slots.touch(step.session.slot, now)
        self.over(step, now)

    def end(self, session: Session) -> None:
        """The session has ended: whatever is in flight or waits is answered so."""
        waiting, session.waiting = session.waiting, None
        current = [session.current] if isinstance(session.current, Step) else []  # a block is answered when it is over
        for item in (*current, *(waiting or ())):
            if isinstance(item, Step):
                item.error = session.ending()
                self._answer(item)
            else:
                item()

    # --- the steps of a block ------------------------------------------------------------

    def begin_all(self, sessions: Sequence[Session], block: Block) -> None:
        """A block begins: it is in flight in each of its sessions, which are at rest."""
        self.depth += len(sessions)
        sessions[0].owner.queued += len(sessions)
        for session in sessions:
            session.current = block

    def over_all(self, sessions: Sequence[Session], failed: Sequence[str], *, gone: bool) -> None:
        """A block is over; `failed` are the reasons of its rows that failed, `gone` whether anybody waits."""
        self.depth -= len(sessions)
        for session in sessions:
            session.owner.queued -= 1
            session.current = None
        if gone:
            self.outcomes["cancelled"] += len(sessions)
        else:
            self.outcomes["ok"] += len(sessions) - len(failed)
            self.outcomes.update(reason.lower() for reason in failed)

    def go_on_all(self, sessions: Sequence[Session], now: float) -> None:
        """A block is answered: what waits behind its steps begins."""
        for session in sessions:
            if session.waiting:
                self._go_on(session, now)

    # --- inside --------------------------------------------------------------------------

    def _go_on(self, session: Session, now: float) -> None:
        """The session is at rest: what waits for it begins, one after the other as far as they go."""
        while session.waiting and session.current is None:
            item = session.waiting.popleft()
            if isinstance(item, Step):
                self._begin(item, now)
            else:
                item()

    def _line(self, session: Session) -> deque[Step | Action]:
        """What waits for a session, with room for one more."""
        if session.waiting is None:
            session.waiting = deque()
        limit = self._limits.max_queue_per_session
        if len(session.waiting) >= limit:
            what = f"steps and operations of session {session.id!r} wait already; read their replies first"
            raise _too_many(what, "max_queue_per_session", limit)
        return session.waiting

    def _begin(self, step: Step, now: float) -> None:
        """The session is at rest and this step is next: put it in line to be run, or answer it at once."""
        session, durable = step.session, step.session.durable
        try:
            apply = session.admit(step)
            if apply and durable is not None:
                durable.check_store()
        except EngineError as error:
            step.error, apply = error, False
            if durable is not None and isinstance(error, (StepGapError, StepNotHeldError)):
                try:
                    durable.make_sure(now)
                except StoreUnavailableError as unsure:
                    step.error = unsure
                else:
                    self._hold(step)
                    return
        if apply:
            session.current = step
            step.slot, step.ready = session.slot, now
            self._scheduler.push(step)
        else:
            self._slots.touch(session.slot, now)
            self._answer(step)

    def _hold(self, step: Step) -> None:
        """Keep a step in flight until its session is saved."""
        session = step.session
        session.current, step.slot = step, session.slot
        assert session.durable is not None  # noqa: S101 - only durable sessions are saved

        durable = session.durable

        def told(error: EngineError | None) -> None:
            if not session.closed:  # else it was answered then
                step.error = error or step.error
                self.over(step, durable.heard_at)
                if session.current is not None:  # what waited behind it
                    self.on_ready()

        durable.when_saved(told)

    def _answer(self, step: Step) -> None:
        """Tell whoever waits for a step; it is not in line any more."""
        self.depth -= 1
        step.session.owner.queued -= 1
        if step.waiter.gone:
            self.outcomes["cancelled"] += 1
        else:
            self.outcomes[step.error.reason.lower() if step.error else "replayed" if step.replayed else "ok"] += 1
            step.waiter.answered(step)


def _too_many(what: str, bound: str, limit: int) -> CapacityError:
    return CapacityError(f"{limit} {what}", retry_after=0.1, bound=bound, limit=limit)


def _nothing() -> None:
    pass
