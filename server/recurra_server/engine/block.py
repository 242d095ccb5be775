"""A block: a step or chunk of each of many sessions that came in one message, and its model call."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import EngineError
from recurra_server.engine.outputs import Choice
from recurra_server.engine.sessions import Session
from recurra_server.engine.steps import Buffer, Step
from recurra_server.engine.workspace import Tensor, Workspace


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
        arrived, ready, deadline: Times in seconds; it is ready when it arrives, as its sessions are at rest.
        errors: Why rows failed, by row.
        ended: The rows whose sessions ended while the block was in flight, and have given back their slots.
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
        self.arrived = self.ready = arrived
        self.numbered = numbered
        self.deadline = deadline
        self.choice = choice
        self.errors: dict[int, EngineError] = {}
        self.ended: set[int] = set()
        self.outputs: list[bytearray] = []
        self.last_numbers: list[int] = []

    def __len__(self) -> int:
        return len(self.sessions)

    @property
    def owner(self) -> Account:
        """Whose it is: one caller's."""
        return self.sessions[0].owner

    def row(self, data: Buffer | bytearray, row: int) -> memoryview:
        """The bytes of one row of an input or output."""
        width = len(data) // len(self.sessions)
        return memoryview(data)[row * width : (row + 1) * width]


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
    def outputs(self) -> list[Tensor]:
        """The outputs of the call that the block is answered with."""
        choice, outputs = self.block.choice, self.workspace.outputs
        return outputs if choice is None else [outputs[place] for place in choice.places]

    @property
    def answered(self) -> list[Block]:
        """What was applied: the block, once for each row that was."""
        return [self.block] * (len(self.block) - len(self.block.errors))

    @property
    def applied(self) -> int:
        """Time steps of all rows that were applied."""
        return (len(self.block) - len(self.block.errors)) * self.block.count

    def run(self) -> None:
        """Call the model; see `Batch.run`."""
        self.workspace.run()


class RowByRow:
    """A block whose rows are run as steps, for its call has failed.

    Args:
        block: Whose rows they are. Those that have failed already are left out.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self._left = len(block) - len(block.errors)

    def steps(self) -> list[Step]:
        """The steps of the rows, each in flight by itself; the block is answered with the last of them."""
        return [self._step(row) for row in range(len(self.block)) if row not in self.block.errors]

    def answered(self, row: int, step: Step) -> None:
        """One is done."""
        block = self.block
        if step.error is not None:
            block.errors[row] = step.error
        else:
            block.last_numbers[row] = step.last_number
            for data, output in zip(block.outputs, step.outputs, strict=True):
                block.row(data, row)[:] = output
        block.compute = max(block.compute, step.compute)
        self._left -= 1
        if not self._left:
            block.waiter.block_answered(block)

    def _step(self, row: int) -> Step:
        block = self.block
        session = block.sessions[row]
        inputs = tuple(block.row(data, row) for data in block.inputs)
        number = session.applied + 1 if block.numbered else 0
        waiter = _RowWaiter(self, row)
        step = Step(
            session,
            inputs,
            block.count,
            waiter,
            block.arrived,
            number=number,
            deadline=block.deadline,
            choice=block.choice,
        )
        step.slot, step.ready, step.started = session.slot, block.ready, block.started
        session.current = step
        return step


class _RowWaiter:
    """Waits for one row of such a block."""

    def __init__(self, rows: RowByRow, row: int) -> None:
        self._rows = rows
        self._row = row

    @property
    def gone(self) -> bool:
        """Whether nobody waits for the block."""
        return self._rows.block.waiter.gone

    def answered(self, step: Step) -> None:
        """The row is done."""
        self._rows.answered(self._row, step)
