"""Blocks: steps and chunks of many sessions that came in one message, and run in one model call.

What is done for a single step is done here for all rows at once, as far as that goes: the inputs lie in the message
as the model wants them, and the outputs leave in one piece.
"""

from collections.abc import Sequence

import numpy as np

from recurra_server.engine.block import Block, BlockBatch, RowByRow
from recurra_server.engine.errors import DeadlineError, EngineError, InputNotFiniteError, InternalError
from recurra_server.engine.limits import Limits
from recurra_server.engine.scheduler import Scheduler
from recurra_server.engine.sessions import KeptReply, Session, state_not_finite
from recurra_server.engine.slots import SlotTable
from recurra_server.engine.steps import Step
from recurra_server.engine.turns import Turns
from recurra_server.engine.workspace import Workspaces


class Blocks:
    """The blocks of one model, from when they are accepted until they are answered."""

    def __init__(
        self, limits: Limits, scheduler: Scheduler, slots: SlotTable[Session], turns: Turns, workspaces: Workspaces
    ) -> None:
        self._limits = limits
        self._scheduler = scheduler
        self._slots = slots
        self._turns = turns
        self._workspaces = workspaces

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
        self._scheduler.push_block(block)

    def stack(self, block: Block, now: float) -> BlockBatch | None:
        """Make a batch of a block; None where nobody waits for it.

        Raises:
            Exception: A bug, or no memory; the block has failed, others can go on.
        """
        if block.waiter.gone:
            self._drop(block, None, now)
            return None
        if block.deadline <= now:
            self._drop(block, DeadlineError("the deadline passed before the step was run; it was not applied"), now)
            return None
        try:
            return self._stack(block, now)
        except Exception:
            self.abandon(block, now)
            raise

    def commit(self, batch: BlockBatch, now: float, compute: float) -> None:
        """Take in what a block that was run has left: keep the next states, answer its rows."""
        block, workspace, slots = batch.block, batch.workspace, batch.slots
        block.compute = compute
        block.outputs = [bytearray(tensor.rows.tobytes()) for tensor in batch.outputs]
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
            Its rows, to be run again as steps, fewer at a time: so it shows whose fault it is.
        """
        block = batch.block
        self._fail_ended(block)
        block.outputs = [bytearray(tensor.rows.nbytes) for tensor in batch.outputs]
        block.last_numbers = [0] * len(block)
        failed = [block.sessions[row] for row in block.errors]
        reasons = [error.reason for error in block.errors.values()]
        self._turns.over_all(failed, reasons, gone=block.waiter.gone)
        steps = RowByRow(block).steps()
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

    def _advance(self, block: Block, now: float) -> None:
        """The states of the rows that have not failed are kept: number them, and keep the replies to retries."""
        count, errors = block.count, block.errors
        names = () if block.choice is None else block.choice.names
        for row, session in enumerate(block.sessions):
            if row not in errors:
                session.applied += count
                reply = None  # as in `Singles`: that of the last step, or none
                if block.numbered:
                    outputs = tuple(bytes(block.row(data, row)) for data in block.outputs)
                    reply = KeptReply(session.applied - count + 1, count, outputs, names)
                session.keep(reply)
                if session.durable is not None:
                    session.durable.changed(now)
        block.last_numbers = [session.applied for session in block.sessions]
        for row in errors:
            block.last_numbers[row] = 0
            for data in block.outputs:
                block.row(data, row)[:] = bytes(len(data) // len(block))

    def _fail_ended(self, block: Block) -> None:
        """The sessions that have ended meanwhile leave; their slots are given back."""
        for row, session in enumerate(block.sessions):
            if session.closed and row not in block.ended:
                block.ended.add(row)
                block.errors[row] = session.ending()
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


def _is_next(session: Session, number: int) -> bool:
    return number == session.applied + 1
