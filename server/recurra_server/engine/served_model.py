"""One version of a model being served: its sessions' states, its queue, and the way of a step.

A step's way: `turns.submit` -> (ready) -> `next_batch` -> *somebody runs it* -> `commit` -> `waiter.answered`.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final

from numpy.typing import NDArray

from recurra_server.engine.accounts import Account
from recurra_server.engine.admission import Admission
from recurra_server.engine.batch import Batch, stack_inputs
from recurra_server.engine.blocks import BlockBatch, Blocks
from recurra_server.engine.errors import (
    DeadlineError,
    EngineError,
    InputNameError,
    InputNotFiniteError,
    InputRefusedError,
    InternalError,
)
from recurra_server.engine.limits import Limits
from recurra_server.engine.outputs import Choice, choose
from recurra_server.engine.ports import Runtime
from recurra_server.engine.scheduler import Scheduler
from recurra_server.engine.sessions import KeptReply, Session, state_not_finite
from recurra_server.engine.signature import Signature
from recurra_server.engine.slots import SlotTable, rows_of
from recurra_server.engine.steps import Step
from recurra_server.engine.turns import Turns
from recurra_server.engine.workspace import Workspaces

_CHOICES: Final = 64  # of outputs that are remembered, as most callers ask for the same
Array = NDArray[Any]


class ServedModel:
    """A model version with its sessions. At most one batch is in flight at a time.

    Attributes:
        name, version, digest, signature: What it is.
        max_batch_size: Most sessions in one call; 1 where the graph's batch is fixed.
        metrics: Figures from training, for whoever asks.
        slots: Where its sessions' states are.
        turns: Its steps from when they are accepted until they are answered.
        blocks: Its steps that came as rows of one message.
        sessions: Number of open sessions that have an id.
        applied_steps: Time steps applied so far.
        compute_seconds: Seconds spent in model calls so far.
        admission: What judges whether it can take more sessions; None where nothing says how fast it is to be.
    """

    def __init__(
        self,
        name: str,
        version: str,
        digest: str,
        signature: Signature,
        runtime: Runtime,
        limits: Limits,
        *,
        max_batch_size: int | None = None,
        max_piece_steps: int | None = None,
        metrics: dict[str, float] | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.digest = digest
        self.signature = signature
        most = min(limits.max_batch_size, max_batch_size or limits.max_batch_size)
        self.max_batch_size = 1 if signature.one_by_one else most
        self.metrics = metrics or {}
        self.slots: SlotTable[Session] = SlotTable(
            signature.kept,
            limits.max_sessions + self.max_batch_size,  # and those of chunks that have not ended
        )
        self.sessions = 0
        self.applied_steps = 0
        self.compute_seconds = 0.0
        target = (signature.step_seconds or 0) / 4 if limits.admit_below is None else limits.admit_below
        self.admission = Admission(target) if target > 0 else None
        longest = min(limits.max_piece_steps, max_piece_steps or limits.max_piece_steps)
        self._scheduler = Scheduler(longest if signature.has_time else 1)
        self.turns = Turns(limits, self._scheduler, self.slots)
        self._alone: deque[Step] = deque()  # steps of a batch that failed, to be run one by one
        self._workspaces = Workspaces(signature, runtime)
        self.blocks = Blocks(limits, self.slots, self.turns, self._workspaces)
        self._choose = lru_cache(_CHOICES)(partial(choose, signature))
        self._in_flight: Batch | BlockBatch | None = None
        self._steps_were_last = False

    @property
    def key(self) -> tuple[str, str, str]:
        """Name, version and digest: what it is counted under."""
        return self.name, self.version, self.digest

    @property
    def has_ready(self) -> bool:
        """Whether there is something for the next batch."""
        return bool(self._alone) or self._scheduler.has_ready or self.blocks.has_ready

    def fits_block(self, steps: int) -> bool:
        """Whether so many steps of each row run in one call, and several rows do."""
        return self.max_batch_size > 1 and self._scheduler.is_piece(steps)

    def choose(self, names: Iterable[str]) -> Choice | None:
        """The outputs of these names, in this order; None for the default ones, where none is named.

        Raises:
            InvalidRequestError: It has no such output, or a name stands twice.
        """
        wanted = tuple(names)
        return self._choose(wanted) if wanted else None

    # --- the way of a step -------------------------------------------------------------

    def next_batch(self, now: float) -> Batch | BlockBatch | None:
        """Choose and stack what runs next; None where nothing is ready or a batch is in flight.

        Raises:
            Exception: A bug, or no memory; the steps that were chosen have failed, others can go on.
        """
        if self._in_flight is not None:
            return None
        batch: Batch | BlockBatch | None = None
        while batch is None and self.has_ready:  # what is not wanted any more lets others become ready
            if self._steps_were_last:  # by turns, lest one kind starves the other
                batch = self.blocks.next_batch(now) or self._next_steps(now)
            else:
                batch = self._next_steps(now) or self.blocks.next_batch(now)
        self._steps_were_last = isinstance(batch, Batch)
        self._in_flight = batch
        return batch

    def _next_steps(self, now: float) -> Batch | None:
        while True:
            if self._alone:
                steps = [self._alone.popleft()]
                length = self._scheduler.piece_length(steps[0])
            else:
                steps, length = self._scheduler.take(self.max_batch_size)
            if not steps:
                return None
            wanted = [step for step in steps if self._is_wanted(step, now)]
            try:
                batch = self._stack(wanted, length, now)
            except Exception:
                self._abandon(wanted, now)
                raise
            if batch is not None:
                return batch

    def commit(self, batch: Batch | BlockBatch, now: float, compute: float) -> None:
        """Take in what a batch that was run has left: keep the next states, answer the steps that are complete.

        Args:
            batch: What was run.
            now: The time in seconds.
            compute: Seconds that the model call took.
        """
        self._in_flight = None
        self.compute_seconds += compute
        if isinstance(batch, BlockBatch):
            self.blocks.commit(batch, now, compute)
            self.applied_steps += len(batch.answered) * batch.block.count
        else:
            self._commit_steps(batch, now, compute)
        if self.admission is not None:
            self.admission.observe(batch.answered, now)

    def _commit_steps(self, batch: Batch, now: float, compute: float) -> None:
        steps, slots, workspace = batch.steps, batch.slots, batch.workspace
        outputs = list(zip(*[tensor.split() for tensor in workspace.outputs], strict=True))
        states = [tensor.rows for tensor in workspace.next]
        lost = {row for row, step in enumerate(steps) if step.session.closed}
        bad = {row for state in workspace.next if not state.all_finite() for row in state.rows_not_finite()}
        if lost or bad or batch.begins_chunks:
            good = [row for row in range(len(steps)) if row not in lost and row not in bad]
            for row in good:
                if steps[row].position == 0 and steps[row].count != batch.length:
                    # The session keeps its own states until the whole chunk has succeeded.
                    steps[row].slot = self.slots.allocate()
            slots = rows_of([steps[row].slot for row in good])
            states = [rows[good] for rows in states]
        self.slots.scatter(slots, states)
        self.slots.touch(slots, now)
        for row, step in enumerate(steps):
            step.compute += compute
            step.batch_size = len(steps)
            if row in lost:
                self._give_up_slots(step)
            elif row in bad:
                self.turns.fail(step, state_not_finite(step.session), now)
            else:
                self._advance(step, outputs[row], batch.length, now)

    def fail(self, batch: Batch | BlockBatch, error: Exception, now: float) -> None:
        """The model refused a batch: find out whose fault it is by running its steps one by one."""
        self._in_flight = None
        if isinstance(batch, BlockBatch):
            self._alone.extend(self.blocks.fail(batch, now))
            return
        for step in batch.steps:
            if step.session.closed:
                self._give_up_slots(step)
            elif len(batch) > 1:
                self._alone.append(step)
            else:
                message = f"the model failed on this input{_reason(error)}"
                self.turns.fail(step, InputRefusedError(message, session_id=step.session.id), now)

    def abandon(self, batch: Batch | BlockBatch, now: float) -> None:
        """A bug: the batch could not be committed. Its steps fail, as far as they are not answered yet."""
        self._in_flight = None
        if isinstance(batch, BlockBatch):
            self.blocks.abandon(batch.block, now)
        else:
            self._abandon(batch.steps, now)

    # --- sessions ----------------------------------------------------------------------

    def open(
        self,
        session_id: str | None,
        idle_timeout: float,
        now: float,
        given: Mapping[str, Array] | None,
        owner: Account,
    ) -> Session:
        """Begin a session with what is given of its states and constants; one without an id never expires.

        Raises:
            InputNameError: A constant that has no value of its own is not given.
        """
        given = given or {}
        kept = self.signature.kept
        for spec in kept:
            if spec.initial is None and spec.name not in given:
                raise InputNameError(
                    f"constant {spec.name!r} must be given with the initial states: {spec.dtype} {list(spec.dims)}",
                    input=spec.name,
                    expected=",".join(other.name for other in kept if other.initial is None),
                )
        slot = self.slots.allocate()
        self.slots.begin(slot, given)
        shared = [self.slots.read(slot)[spec.name] for spec in self.signature.own_constants if spec.batch_axis is None]
        session = Session(session_id, owner, self, slot, b"".join(value.tobytes() for value in shared))
        self.slots.settle(slot, session, idle_timeout, now)
        owner.state_bytes += self.signature.state_bytes
        if session_id is not None:
            self.sessions += 1
        return session

    def close(self, session: Session, error: EngineError | None = None) -> None:
        """End a session: what waits fails (with SESSION_NOT_FOUND, if not told otherwise), what runs is dropped."""
        session.closed = True
        session.owner.state_bytes -= self.signature.state_bytes
        if session.id is not None:
            self.sessions -= 1
        current = session.current
        if current is None:
            self.slots.release(session.slot)
        elif isinstance(current, Step) and not self._runs(current):
            self._give_up_slots(current)
        self.turns.end(session, error)

    # --- inside ------------------------------------------------------------------------

    def _runs(self, step: Step) -> bool:
        """Whether a step is in the batch in flight."""
        return isinstance(self._in_flight, Batch) and step in self._in_flight.steps

    def _is_wanted(self, step: Step, now: float) -> bool:
        """Whether somebody still waits for a ready step; if not, it leaves."""
        if step.session.closed:  # answered when it was closed
            return False
        if step.waiter.gone:
            self.slots.touch(step.session.slot, now)
            self.turns.over(step, now)
            return False
        if step.deadline <= now:
            message = "the deadline passed before the step was run; it was not applied"
            self.turns.fail(step, DeadlineError(message, session_id=step.session.id), now)
            return False
        return True

    def _stack(self, steps: list[Step], length: int, now: float) -> Batch | None:
        """Make a batch of ready steps; those whose inputs are not finite fail."""
        if not steps:
            return None
        workspace = self._workspaces.get(len(steps), length, steps[0].in_full)
        bad = stack_inputs(workspace, steps, length)
        if bad:
            for row, name in bad.items():
                message = f"input {name!r} holds NaN or infinity; the step was not applied"
                self.turns.fail(steps[row], InputNotFiniteError(message, input=name), now)
            return self._stack([step for row, step in enumerate(steps) if row not in bad], length, now)
        slots = rows_of([step.slot for step in steps])
        self.slots.gather(slots, [tensor.rows for tensor in workspace.kept])
        begins_chunks = False
        for step in steps:
            if step.position == 0:
                step.started = now
                begins_chunks = begins_chunks or step.count != length
        return Batch(steps, length, slots, workspace, begins_chunks)

    def _advance(self, step: Step, outputs: tuple[bytes, ...], length: int, now: float) -> None:
        """A piece of the step has been run and its states kept."""
        session = step.session
        step.position += length
        if step.choice is not None:
            outputs = step.choice.of(outputs)
        if length == step.count:
            step.outputs = outputs
        else:
            step.pieces = [*(step.pieces or ()), outputs]
            if step.position < step.count:
                self._scheduler.push(step)
                return
            step.outputs = tuple(b"".join(parts) for parts in zip(*step.pieces, strict=True))
            self.slots.move(session.slot, step.slot)
            self.slots.touch(step.slot, now)
            session.slot = step.slot
        session.applied += step.count
        self.applied_steps += step.count
        step.last_number = session.applied
        if step.number:
            names = () if step.choice is None else step.choice.names
            session.kept = KeptReply(step.number, step.count, step.outputs, names)
        if session.durable is None:
            self.turns.over(step, now)
        else:
            self.turns.keep(step, now)

    def _abandon(self, steps: Sequence[Step], now: float) -> None:
        for step in steps:
            if step.session.current is step and not step.session.closed:
                self.turns.fail(step, InternalError("the step failed inside the server; its log tells more"), now)

    def _give_up_slots(self, step: Step) -> None:
        """The session has ended and its step is out of flight: nobody refers to its slots any more."""
        self.slots.release(step.session.slot)
        if step.slot != step.session.slot:
            self.slots.release(step.slot)


def _reason(error: Exception) -> str:
    """What ONNX Runtime says of an input, without the places in its source and in the graph."""
    text = str(error).rpartition("Status Message: ")[2].splitlines()
    return f": {text[0][:200]}" if text and not text[0].startswith(("/", "[")) else ""
