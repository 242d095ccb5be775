"""A step (or chunk of steps) on its way through the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from recurra_server.engine.errors import EngineError
from recurra_server.engine.outputs import Choice
from recurra_server.engine.specs import TensorSpec

if TYPE_CHECKING:
    from recurra_server.engine.accounts import Account
    from recurra_server.engine.sessions import Place, Session

Buffer = bytes | memoryview


class Waiter(Protocol):
    """Who waits for a step; one may wait for many."""

    @property
    def gone(self) -> bool:
        """Whether nobody waits any more: what has not been run will not be, and is not answered."""
        ...

    def answered(self, step: Step) -> None:
        """Called exactly once, when the step has succeeded or failed. Must not raise; may end the step's session."""
        ...


class Step:
    """One request to advance a session by `count` >= 1 time steps, all or nothing.

    Attributes:
        session: Whose step it is.
        inputs: For each input of the signature, its `count` steps as little-endian bytes.
        waiter: Who is told when it has succeeded or failed.
        number: Number of its first time step; 0 means "just the next one".
        after: Where its session has to stand when it is the turn of a step without a number; None for anywhere.
        arrived, deadline: Times in seconds; the deadline may be infinite.
        choice: The outputs that are asked for by name; None for the default ones.
        in_full: Whether it is for a model call that computes optional outputs, too.
        error: Why it failed, or None.
        outputs: For each output that is answered (`specs`), its `count` steps as little-endian bytes.
        last_number: Number of the session's last time step applied.
        replayed: Whether this is the kept reply of a step that had been applied before.
        ready: When it was its turn in its session: no other step was before it any more.
        started: When its first model call began.
        compute: Seconds spent in its model calls.
        batch_size: Number of sessions in its last model call.
    """

    # Most steps succeed at once, so what they seldom need is set only then.
    choice: Choice | None = None
    in_full = False
    error: EngineError | None = None
    number = 0
    after: Place | None = None
    outputs: tuple[bytes, ...] = ()
    last_number = 0
    replayed = False
    ready = 0.0
    started = 0.0
    compute = 0.0
    batch_size = 0
    # How far it has come: time steps run, the slot that holds the states so far (the session's
    # own only once all is done), and the outputs of each piece.
    position = 0
    slot = -1
    pieces: list[tuple[bytes, ...]] | None = None

    def __init__(
        self,
        session: Session,
        inputs: tuple[Buffer, ...],
        count: int,
        waiter: Waiter,
        arrived: float,
        *,
        number: int = 0,
        deadline: float = float("inf"),
        choice: Choice | None = None,
    ) -> None:
        self.session = session
        self.inputs = inputs
        self.count = count
        self.waiter = waiter
        self.arrived = arrived
        self.number = number
        self.deadline = deadline
        if choice is not None:
            self.ask(choice)

    def ask(self, choice: Choice | None) -> None:
        """Say which outputs are wanted; None: the default ones."""
        self.choice = choice
        self.in_full = choice is not None and choice.in_full

    @property
    def owner(self) -> Account:
        """Whose it is."""
        return self.session.owner

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The outputs that it is answered with."""
        return self.session.model.signature.default_outputs if self.choice is None else self.choice.specs
