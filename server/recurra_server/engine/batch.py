"""A batch: steps of different sessions that run in one model call."""

from collections.abc import Sequence
from dataclasses import dataclass

from recurra_server.engine.slots import Slots
from recurra_server.engine.steps import Buffer, Step
from recurra_server.engine.workspace import Workspace


@dataclass(slots=True)
class Batch:
    """One model call, ready to `run`, and what is needed to commit what comes of it.

    Attributes:
        steps: The B steps, each of another session.
        length: T, the number of time steps run of each.
        slots: For each step, the slot that its states came from.
        workspace: The tensors of the call.
        begins_chunks: Whether some of the steps are chunks of several pieces, of which this is the first.
    """

    steps: list[Step]
    length: int
    slots: Slots
    workspace: Workspace
    begins_chunks: bool

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def work(self) -> int:
        """Time steps to run, over all sessions."""
        return len(self.steps) * self.length

    @property
    def answered(self) -> list[Step]:
        """The steps that were applied and are complete."""
        return [step for step in self.steps if step.position == step.count and step.error is None]

    @property
    def applied(self) -> int:
        """Time steps of these; a chunk counts when its last piece is run."""
        return sum([step.count for step in self.answered])

    def run(self) -> None:
        """Call the model; perhaps on another thread: it touches nothing but the workspace.

        Raises:
            Exception: The model refuses these values.
        """
        self.workspace.run()


def stack_inputs(workspace: Workspace, steps: Sequence[Step], length: int) -> dict[int, str]:
    """Stack the next `length` time steps of each step.

    Returns:
        The rows that hold NaN or infinity, with the name of the input that does.
    """
    bad: dict[int, str] = {}
    for index, tensor in enumerate(workspace.inputs):
        pieces = [step.inputs[index] if step.count == length else _piece(step, index, length) for step in steps]
        tensor.put(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if not tensor.all_finite():
            bad.update((row, tensor.name) for row in tensor.rows_not_finite())
    return bad


def _piece(step: Step, index: int, length: int) -> Buffer:
    """The bytes of the piece of a chunk's input that runs next."""
    data = memoryview(step.inputs[index])
    width = len(data) // step.count
    start = step.position * width
    return data[start : start + length * width]
