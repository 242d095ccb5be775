"""Blocks: a step or chunk of each of many sessions that came in one message, and runs in one model call.

What is done for a single step is done here for all rows at once, as far as that goes: the inputs lie in the message
as the model wants them, and the outputs leave in one piece.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import DeadlineError, EngineError, InputNotFiniteError, InternalError
from recurra_server.engine.limits import Limits
from recurra_server.engine.outputs import Choice
from recurra_server.engine.sessions import KeptReply, Session, not_found, state_not_finite
from recurra_server.engine.slots import SlotTable
from recurra_server.engine.steps import Buffer, Step
from recurra_server.engine.turns import Turns
from recurra_server.engine.workspace import Tensor, Workspace, Workspaces


class BlockWaiter(Protocol):
    """Who waits for a block."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more: what has not been run will not be, and is not answered."""
        ...

    def block_answered(self, block: "Block") -> None:
        """Called once, when each row has succeeded or failed. Must not raise."""
        ...


class Block:
    """One request to advance B different sessions of a model by `count` steps each; rows fail one by one.

    Attributes:
        sessions: Whose rows they are.
        inputs: For each input of the signature, all rows `[B, count, *dims]` as little-endian bytes.
        count: Steps of each row.
        choice: The outputs that are asked for by name; None for the default ones.
        waiter: Who is told when it is done.
        numbered: Whether the steps have numbers, so that the replies are to be kept.
        arrived, deadline: Times in seconds.
        errors: Why rows failed, by row.
        outputs: For each output that is answered, all rows as little-endian bytes; zeros where a row failed.
        last_numbers: Each session's last step applied; 0 where the row failed.
        started: When its model call began.
        compute: Seconds spent in it.
    """

    started = 0.0
    compute = 0.0

    def __init__(
        self,
        sessions: list[Session],
        inputs: tuple[Buffer, ...],
        count: int,
        waiter: BlockWaiter,
        arrived: float,
        *,
        numbered: bool = False,
        deadline: float = float("inf"),
        choice: Choice | None = None,
    ) -> None:
        self.sessions = sessions
        self.inputs = inputs
        self.count = count
        self.waiter = waiter
        self.arrived = arrived
        self.numbered = numbered
        self.deadline = deadline
        self.choice = choice
        self.errors: dict[int, EngineError] = {}
        self.outputs: list[bytearray] = []
        self.last_numbers: list[int] = []

    def __len__(self) -> int:
        return len(self.sessions)


class BlockBatch:
    """A block's model call, ready to `run`.

    Attributes:
        slots: For each row, the slot that its states came from.
        workspace: The tensors of the call.
    """

    def __init__(self, block: Block, slots: NDArray[np.intp], workspace: Workspace) -> None:
        self.block = block
        self.slots = slots
        self.workspace = workspace

    def __len__(self) -> int:
        return len(self.block)

    @property
    def work(self) -> int:
        """Time steps to run, over all rows."""
        return len(self.block) * self.block.count

    @property
    def answered(self) -> list[Block]:
        """What was applied: the block, once for each row that was."""
        return [self.block] * (len(self.block) - len(self.block.errors))

    def run(self) -> None:
        """Call the model; see `Batch.run`."""
        self.workspace.run()


class Blocks:
    """The blocks of one model, from when they are accepted until they are answered."""

    def __init__(self, limits: Limits, slots: SlotTable[Session], turns: Turns, workspaces: Workspaces) -> None:
        self._limits = limits
        self._slots = slots
        self._turns = turns
        self._workspaces = workspaces
        self._ready: dict[Account, deque[Block]] = {}  # by turns, so that nobody keeps others back

    @property
    def has_ready(self) -> bool:
        """Whether any block is in line."""
        return bool(self._ready)

    def takes(self, sessions: Sequence[Session], numbers: Sequence[int]) -> bool:
        """Whether steps can be run as a block: each is the next of another session at rest, and all of one group.

        What is otherwise (a retry, a gap, a session with a step in flight, a SYNC session) has to be submitted step
        by step.
        """
        return (
            self._has_room(sessions)
            and len(set(sessions)) == len(sessions)
            and len({session.group for session in sessions}) == 1
            and not any(session.current is not None or session.closed for session in sessions)
            and not any(session.durable is not None and session.durable.is_sync for session in sessions)
            and (not numbers or all(map(_is_next, sessions, numbers)))
        )

    def _has_room(self, sessions: Sequence[Session]) -> bool:
        free, owner = self._limits.max_queue - self._turns.depth, sessions[0].owner
        return len(sessions) <= free and (not owner.key or owner.queued + len(sessions) <= free)

    def submit(self, block: Block) -> None:
        """Accept a block of steps that `takes` has approved of."""
        self._turns.begin_all(block.sessions, block)
        self._ready.setdefault(block.sessions[0].owner, deque()).append(block)

    def next_batch(self, now: float) -> BlockBatch | None:
        """Stack the next block that somebody waits for; None where there is none.

        Raises:
            Exception: A bug, or no memory; the block has failed, others can go on.
        """
        while self._ready:
            owner = next(iter(self._ready))
            blocks = self._ready.pop(owner)
            block = blocks.popleft()
            if blocks:
                self._ready[owner] = blocks  # to the end
            if block.waiter.gone:
                self._drop(block, None, now)
            elif block.deadline <= now:
                self._drop(block, DeadlineError("the deadline passed before the step was run; it was not applied"), now)
            else:
                try:
                    return self._stack(block, now)
                except Exception:
                    self.abandon(block, now)
                    raise
        return None

    def commit(self, batch: BlockBatch, now: float, compute: float) -> None:
        """Take in what a block that was run has left: keep the next states, answer its rows."""
        block, workspace, slots = batch.block, batch.workspace, batch.slots
        block.compute = compute
        block.outputs = [bytearray(tensor.rows.tobytes()) for tensor in _answered(batch)]
        states = [tensor.rows for tensor in workspace.next]
        for tensor in workspace.next:
            if not tensor.all_finite():
                for row in tensor.rows_not_finite():
                    block.errors.setdefault(row, state_not_finite(block.sessions[row]))
        self._fail_ended(block)
        if block.errors:
            good = [row for row in range(len(block)) if row not in block.errors]
            slots, states = slots[good], [rows[good] for rows in states]
        self._slots.scatter(slots, states)
        self._slots.touch(batch.slots, now)
        self._advance(block, now)
        self._over(block, now)

    def fail(self, batch: BlockBatch, now: float) -> list[Step]:
        """The model refused a block.

        Returns:
            Its rows, to be run one by one: so it shows whose fault it is.
        """
        block = batch.block
        self._fail_ended(block)
        block.outputs = [bytearray(tensor.rows.nbytes) for tensor in _answered(batch)]
        block.last_numbers = [0] * len(block)
        failed = [block.sessions[row] for row in block.errors]
        reasons = [error.reason for error in block.errors.values()]
        self._turns.over_all(failed, reasons, gone=block.waiter.gone)
        left = _RowsLeft(block, len(block) - len(failed))
        steps = [self._alone(left, row) for row in range(len(block)) if row not in block.errors]
        if not steps and not block.waiter.gone:
            block.waiter.block_answered(block)
        self._turns.go_on_all(failed, now)
        return steps

    def abandon(self, block: Block, now: float) -> None:
        """A bug: the block could not be run, or not be committed."""
        self._drop(block, InternalError("the step failed inside the server; its log tells more"), now)

    # --- inside ------------------------------------------------------------------------

    def _stack(self, block: Block, now: float) -> BlockBatch:
        """Put a block's inputs and states into the tensors of a call.

        A row whose inputs are not finite has failed: what comes of it will be dropped.
        """
        choice = block.choice
        workspace = self._workspaces.get(len(block), block.count, choice is not None and choice.in_full)
        for tensor, data in zip(workspace.inputs, block.inputs, strict=True):
            tensor.put(data)
            if not tensor.all_finite():
                message = f"input {tensor.name!r} holds NaN or infinity; the step was not applied"
                for row in tensor.rows_not_finite():
                    block.errors[row] = InputNotFiniteError(message, input=tensor.name)
        slots = np.array([session.slot for session in block.sessions], np.intp)
        self._slots.gather(slots, [tensor.rows for tensor in workspace.kept])
        block.started = now
        return BlockBatch(block, slots, workspace)

    def _alone(self, left: "_RowsLeft", row: int) -> Step:
        """The step of one row, in flight by itself."""
        block = left.block
        session = block.sessions[row]
        inputs = tuple(_row(data, row, len(block)) for data in block.inputs)
        number = session.applied + 1 if block.numbered else 0
        waiter = _RowWaiter(left, row)
        step = Step(session, inputs, block.count, waiter, block.arrived, number=number, choice=block.choice)
        step.slot, step.started = session.slot, block.started
        session.current = step
        return step

    def _advance(self, block: Block, now: float) -> None:
        """The states of the rows that have not failed are kept: number them, and keep the replies to retries."""
        count, errors = block.count, block.errors
        for row, session in enumerate(block.sessions):
            if row not in errors:
                session.applied += count
                if session.durable is not None:
                    session.durable.changed(now)
        block.last_numbers = [session.applied for session in block.sessions]
        for row in errors:
            block.last_numbers[row] = 0
            for data in block.outputs:
                _row(data, row, len(block))[:] = bytes(len(data) // len(block))
        if block.numbered:
            names = () if block.choice is None else block.choice.names
            for row, session in enumerate(block.sessions):
                if row not in errors:
                    outputs = tuple(bytes(_row(data, row, len(block))) for data in block.outputs)
                    session.kept = KeptReply(session.applied - count + 1, count, outputs, names)

    def _fail_ended(self, block: Block) -> None:
        """The sessions that have ended meanwhile leave; their slots are given back."""
        for row, session in enumerate(block.sessions):
            if session.closed:
                block.errors[row] = not_found(session.id)
                self._slots.release(session.slot)

    def _drop(self, block: Block, error: EngineError | None, now: float) -> None:
        """A block that was not applied: every row failed, or nobody waits."""
        self._fail_ended(block)
        block.last_numbers = [0] * len(block)
        for row, session in enumerate(block.sessions):
            if row not in block.errors:
                self._slots.touch(session.slot, now)
                if error is not None:
                    block.errors[row] = error
        self._over(block, now)

    def _over(self, block: Block, now: float) -> None:
        """Answer a block, and let what waits behind its steps begin."""
        reasons = [error.reason for error in block.errors.values()]
        self._turns.over_all(block.sessions, reasons, gone=block.waiter.gone)
        if not block.waiter.gone:
            block.waiter.block_answered(block)
        self._turns.go_on_all(block.sessions, now)


class _RowsLeft:
    """A block whose rows are run one by one."""

    def __init__(self, block: Block, count: int) -> None:
        self.block = block
        self.count = count

    def answered(self, row: int, step: Step) -> None:
        """One is done."""
        block = self.block
        if step.error is not None:
            block.errors[row] = step.error
        else:
            block.last_numbers[row] = step.last_number
            for data, output in zip(block.outputs, step.outputs, strict=True):
                _row(data, row, len(block))[:] = output
        block.compute = max(block.compute, step.compute)
        self.count -= 1
        if not self.count:
            block.waiter.block_answered(block)


class _RowWaiter:
    """Waits for one row of such a block."""

    def __init__(self, left: _RowsLeft, row: int) -> None:
        self._left = left
        self._row = row

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the block."""
        return self._left.block.waiter.gone

    def answered(self, step: Step) -> None:
        """The row is done."""
        self._left.answered(self._row, step)


def _is_next(session: Session, number: int) -> bool:
    return number == session.applied + 1


def _answered(batch: BlockBatch) -> list[Tensor]:
    """The outputs of a call that its block is answered with."""
    choice, outputs = batch.block.choice, batch.workspace.outputs
    return outputs if choice is None else [outputs[place] for place in choice.places]


def _row(data: Any, row: int, rows: int) -> memoryview:
    """The bytes of one of so many rows."""
    width = len(data) // rows
    return memoryview(data)[row * width : (row + 1) * width]
