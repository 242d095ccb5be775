"""One version of a model being served: its sessions' states, its queue, and the way of a step.

A step's way: `submit` -> (ready) -> `next_batch` -> *somebody runs it* -> `commit` -> `done`.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.batch import Batch, rows_not_finite, stack_inputs, stack_states, unstack_results
from recurra_server.engine.errors import (
    CapacityError,
    DeadlineError,
    EngineError,
    InputNotFiniteError,
    InputRefusedError,
    InternalError,
    StateNotFiniteError,
)
from recurra_server.engine.limits import Limits
from recurra_server.engine.scheduler import Scheduler
from recurra_server.engine.sessions import Action, KeptReply, Session, not_found
from recurra_server.engine.signature import Signature
from recurra_server.engine.slots import SlotTable
from recurra_server.engine.steps import Step

Array = NDArray[Any]


class ServedModel:
    """A model version with its sessions. At most one batch is in flight at a time.

    Attributes:
        name, version, digest, signature: What it is.
        max_batch_size: Most sessions in one call; 1 where the graph's batch is fixed.
        metrics: Figures from training, for whoever asks.
        sessions: Number of open sessions that have an id.
        depth: Steps accepted and not yet answered.
        applied_steps: Time steps applied so far.
        outcomes: Steps answered so far, by outcome: "ok", "replayed" or the error's reason.
    """

    def __init__(
        self,
        name: str,
        version: str,
        digest: str,
        signature: Signature,
        limits: Limits,
        *,
        max_batch_size: int | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.digest = digest
        self.signature = signature
        self.max_batch_size = min(limits.max_batch_size, max_batch_size or limits.max_batch_size)
        self.metrics = metrics or {}
        self.slots: SlotTable[Session] = SlotTable(signature.states)
        self.sessions = 0
        self.depth = 0
        self.applied_steps = 0
        self.outcomes: Counter[str] = Counter()
        self._limits = limits
        self._scheduler = Scheduler(limits.max_piece_steps if signature.has_time else 1)
        self._alone: deque[Step] = deque()  # steps of a batch that failed, to be run one by one
        self._in_flight: Batch | None = None

    # --- the way of a step -------------------------------------------------------------

    def submit(self, step: Step, now: float) -> None:
        """Accept a step; it is answered through its `done`, perhaps before this returns.

        Raises:
            SessionNotFoundError: The session has ended.
            CapacityError: Too many steps wait, of this session or of all.
        """
        session = step.session
        if session.closed:
            raise not_found(session.id)
        if self.depth >= self._limits.max_queue:
            raise CapacityError(
                f"{self.depth} steps wait for model {self.name!r}; the server cannot keep up: try again later",
                retry_after=0.1,
                bound="max_queue",
                limit=self._limits.max_queue,
            )
        if session.current is not None:
            waiting = session.waiting
            if waiting is None:
                waiting = session.waiting = deque()
            elif len(waiting) >= self._limits.max_queue_per_session:
                raise CapacityError(
                    f"{len(waiting)} steps of session {session.id!r} wait already; read their replies first",
                    retry_after=0.1,
                    bound="max_queue_per_session",
                    limit=self._limits.max_queue_per_session,
                )
            waiting.append(step)
            self.depth += 1
        else:
            self.depth += 1
            self._begin(step, now)

    def next_batch(self, now: float) -> Batch | None:
        """Choose and stack what runs next; None where nothing is ready or a batch is in flight."""
        if self._in_flight is not None:
            return None
        while True:
            if self._alone:
                steps = [self._alone.popleft()]
                length = self._scheduler.piece_length(steps[0])
            else:
                steps, length = self._scheduler.take(self.max_batch_size)
            if not steps:
                return None
            batch = self._stack([step for step in steps if self._is_wanted(step, now)], length, now)
            if batch is not None:
                self._in_flight = batch
                return batch

    def commit(self, batch: Batch, results: Sequence[Array], now: float, compute: float) -> None:
        """Take a batch's results in: keep the next states, answer the steps that are complete.

        Args:
            batch: What was run.
            results: What the runtime returned.
            now: The time in seconds.
            compute: Seconds that the model call took.

        Raises:
            ValueError: The results are not what the signature declares; nothing was committed.
        """
        size = len(batch.steps)
        outputs, states = unstack_results(self.signature, batch, results)
        self._in_flight = None
        bad = set(rows_not_finite(states))
        good = [row for row, step in enumerate(batch.steps) if row not in bad and not step.session.closed]
        if len(good) == size:
            self.slots.scatter(batch.slots, states)
        else:
            self.slots.scatter(batch.slots[good], [rows[good] for rows in states])
        self.slots.touch(np.array([batch.steps[row].session.slot for row in good], np.intp), now)
        for row, step in enumerate(batch.steps):
            step.compute += compute
            step.batch_size = size
            if step.session.closed:
                self._give_up_slots(step)
            elif row in bad:
                self._fail(step, _state_not_finite(step), now)
            else:
                self._advance(step, outputs[row], batch.length, now)

    def fail(self, batch: Batch, error: Exception, now: float) -> None:
        """The model refused a batch: find out whose fault it is by running its steps one by one."""
        self._in_flight = None
        for step in batch.steps:
            if step.session.closed:
                self._give_up_slots(step)
            elif len(batch.steps) > 1:
                self._alone.append(step)
            else:
                detail = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
                self._fail(
                    step,
                    InputRefusedError(f"the model failed on this input: {detail}", session_id=step.session.id),
                    now,
                )

    def abandon(self, batch: Batch, now: float) -> None:
        """A bug: the batch could not be run or committed. Its steps fail, nothing is changed."""
        self._in_flight = None
        for step in batch.steps:
            if step.session.closed:
                self._give_up_slots(step)
            else:
                self._fail(step, InternalError("the step failed inside the server; its log tells more"), now)

    # --- sessions ----------------------------------------------------------------------

    def open(self, session_id: str | None, idle_timeout: float, now: float) -> Session:
        """Begin a session at the initial states; one without an id never expires."""
        slot = self.slots.allocate()
        self.slots.reset(slot)
        session = Session(session_id, self, slot)
        self.slots.settle(slot, session, idle_timeout, now)
        if session_id is not None:
            self.sessions += 1
        return session

    def close(self, session: Session) -> None:
        """End a session: what waits fails, what runs is dropped when it returns."""
        session.closed = True
        if session.id is not None:
            self.sessions -= 1
        current, waiting = session.current, session.waiting
        session.waiting = None
        if current is None:
            self.slots.release(session.slot)
        else:
            self._answer(current, not_found(session.id))
            if self._in_flight is None or current not in self._in_flight.steps:
                self._give_up_slots(current)
        for item in waiting or ():
            if isinstance(item, Step):
                self._answer(item, not_found(session.id))
            else:
                item()

    def at_rest(self, session: Session, action: Action) -> None:
        """Call `action` once no step of the session is in flight or waiting; also when it has ended."""
        if session.current is None:
            action()
        else:
            if session.waiting is None:
                session.waiting = deque()
            session.waiting.append(action)

    # --- inside ------------------------------------------------------------------------

    def _begin(self, step: Step, now: float) -> None:
        """The session is at rest and this step is next: make it ready, or answer it at once."""
        session = step.session
        try:
            apply = session.admit(step)
        except EngineError as error:
            self._answer(step, error)
            return
        self.slots.touch(session.slot, now)
        if apply:
            session.current = step
            step.slot = session.slot
            self._scheduler.push(step)
        else:
            self._answer(step, None)

    def _is_wanted(self, step: Step, now: float) -> bool:
        """Whether somebody still waits for a ready step; if not, it leaves."""
        if step.session.closed:  # answered when it was closed
            return False
        if step.cancelled:
            self._leave(step, now)
            return False
        if step.deadline <= now:
            error = DeadlineError(
                "the deadline passed before the step was run; it was not applied", session_id=step.session.id
            )
            self._fail(step, error, now)
            return False
        return True

    def _stack(self, steps: list[Step], length: int, now: float) -> Batch | None:
        """Make a batch of ready steps; those whose inputs are not finite fail."""
        feeds, bad = stack_inputs(self.signature, steps, length) if steps else ({}, {})
        if bad:
            for row, name in bad.items():
                error = InputNotFiniteError(
                    f"input {name!r} holds NaN or infinity; the step was not applied", input=name
                )
                self._fail(steps[row], error, now)
            return self._stack([step for row, step in enumerate(steps) if row not in bad], length, now)
        if not steps:
            return None
        slots, states = stack_states(self.signature, steps, self.slots)
        for row, step in enumerate(steps):
            if step.position == 0:
                step.started = now
                if length < step.count:
                    # The session keeps its own states until the whole chunk has succeeded.
                    slots[row] = step.slot = self.slots.allocate()
        return Batch(steps, length, slots, {**feeds, **states})

    def _advance(self, step: Step, outputs: tuple[bytes, ...], length: int, now: float) -> None:
        """A piece of the step has been run and its states kept."""
        step.position += length
        if length == step.count:
            step.outputs = outputs
        else:
            if step.pieces is None:
                step.pieces = []
            step.pieces.append(outputs)
            if step.position < step.count:
                self._scheduler.push(step)
                return
            step.outputs = tuple(b"".join(parts) for parts in zip(*step.pieces, strict=True))
        session = step.session
        if step.slot != session.slot:
            self.slots.move(session.slot, step.slot)
            session.slot = step.slot
        session.applied += step.count
        self.applied_steps += step.count
        step.last_number = session.applied
        if step.number:
            session.kept = KeptReply(step.number, step.count, step.outputs)
        self._leave(step, now)

    def _fail(self, step: Step, error: EngineError, now: float) -> None:
        """The session's current step has failed: the session is as it was before."""
        step.error = error
        self._leave(step, now)

    def _leave(self, step: Step, now: float) -> None:
        """The session's current step is over: answer it and let the next one begin."""
        session = step.session
        if step.slot != session.slot:
            self.slots.release(step.slot)
        session.current = None
        self._answer(step, step.error)
        while session.waiting and session.current is None:
            item = session.waiting.popleft()
            if isinstance(item, Step):
                self._begin(item, now)
            else:
                item()

    def _answer(self, step: Step, error: EngineError | None) -> None:
        self.depth -= 1
        step.error = error
        if step.cancelled:
            self.outcomes["cancelled"] += 1
            return
        self.outcomes[error.reason.lower() if error else "replayed" if step.replayed else "ok"] += 1
        step.done(step)

    def _give_up_slots(self, step: Step) -> None:
        """The session has ended and its step is out of flight: nobody refers to its slots any more."""
        self.slots.release(step.session.slot)
        if step.slot != step.session.slot:
            self.slots.release(step.slot)


def _state_not_finite(step: Step) -> StateNotFiniteError:
    number = step.session.applied + 1
    return StateNotFiniteError(
        f"step {number} would make the session's memory NaN or infinite; it was not applied: "
        "leave it out or reset the session",
        session_id=step.session.id,
        step=number,
    )
