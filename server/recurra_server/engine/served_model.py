"""One version of a model being served: its sessions' states, its queue, and the way of a step.

A step's way: `turns.submit` -> (ready) -> `next_batch` -> *somebody runs it* -> `commit` -> `waiter.answered`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Final

from numpy.typing import NDArray

from recurra_server.engine.accounts import Account
from recurra_server.engine.admission import Admission
from recurra_server.engine.batch import Batch
from recurra_server.engine.block import Block, BlockBatch
from recurra_server.engine.blocks import Blocks
from recurra_server.engine.errors import EngineError, InputNameError
from recurra_server.engine.limits import Limits
from recurra_server.engine.outputs import Choice, choose
from recurra_server.engine.ports import Runtime
from recurra_server.engine.scheduler import Scheduler
from recurra_server.engine.sessions import Session, not_found
from recurra_server.engine.signature import Signature
from recurra_server.engine.singles import Singles
from recurra_server.engine.slots import SlotTable
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
        singles: Its steps that came one by one.
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
            limits.max_sessions + limits.max_queue,  # a chunk that has not ended has a slot of its own
        )
        self.sessions = 0
        self.applied_steps = 0
        self.compute_seconds = 0.0
        target = (signature.step_seconds or 0) / 4 if limits.admit_below is None else limits.admit_below
        self.admission = Admission(target) if target > 0 else None
        longest = min(limits.max_piece_steps, max_piece_steps or limits.max_piece_steps)
        self._scheduler = Scheduler(longest if signature.has_time else 1)
        self.turns = Turns(limits, self._scheduler, self.slots)
        workspaces = Workspaces(signature, runtime)
        self.singles = Singles(self._scheduler, self.slots, self.turns, workspaces)
        self.blocks = Blocks(limits, self._scheduler, self.slots, self.turns, workspaces)
        self._choose = lru_cache(_CHOICES)(partial(choose, signature))
        self._in_flight: Batch | BlockBatch | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """Name, version and digest: what it is counted under."""
        return self.name, self.version, self.digest

    @property
    def has_ready(self) -> bool:
        """Whether there is something for the next batch."""
        return self._scheduler.has_ready

    def fits_block(self, steps: int) -> bool:
        """Whether so many steps of each row run in one call, and several rows do."""
        return self.max_batch_size > 1 and self._scheduler.is_piece(steps)

    def choose(self, names: Iterable[str]) -> Choice | None:
        """The outputs of these names, in this order; None for the default ones, where none is named.

        Raises:
            InvalidRequestError: It has no such output, or a name stands twice.
        """
        wanted = tuple(islice(names, len(self.signature.outputs) + 1))  # of more, one is unknown or stands twice
        return self._choose(wanted) if wanted else None

    # --- the way of a step -------------------------------------------------------------

    def next_batch(self, now: float) -> Batch | BlockBatch | None:
        """Choose and stack what runs next; None where nothing is ready or a batch is in flight.

        Raises:
            Exception: A bug, or no memory; the steps that were chosen have failed, others can go on.
        """
        if self._in_flight is not None:
            return None
        while (taken := self._scheduler.take(self.max_batch_size, now)) is not None:
            batch = self.blocks.stack(taken, now) if isinstance(taken, Block) else self.singles.stack(taken, now)
            if batch is not None:  # else nobody waited for it any more
                self._in_flight = batch
                return batch
        return None

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
        else:
            self.singles.commit(batch, now, compute)
        self.applied_steps += batch.applied
        if self.admission is not None:
            answered: Sequence[Step | Block] = batch.answered
            if self._scheduler.apart:  # what is run again for them makes them late, not what is asked of the server
                answered = [item for item in answered if item.owner not in self._scheduler.apart]
            self.admission.observe(answered, now)

    def fail(self, batch: Batch | BlockBatch, error: Exception, now: float) -> None:
        """The model refused a batch: find out whose fault it is by running its steps again in halves."""
        self._in_flight = None
        if isinstance(batch, BlockBatch):
            self.singles.run_again(self.blocks.fail(batch, now), now)
        else:
            self.singles.fail(batch, error, now)

    def abandon(self, batch: Batch | BlockBatch, now: float) -> None:
        """A bug: the batch could not be committed. Its steps fail, as far as they are not answered yet."""
        self._in_flight = None
        if isinstance(batch, BlockBatch):
            self.blocks.abandon(batch.block, now)
        else:
            self.singles.abandon(batch, now)

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
        self.check_given(given)
        slot = self.slots.allocate()
        self.slots.begin(slot, given)
        shared = [self.slots.read(slot)[spec.name] for spec in self.signature.own_constants if spec.batch_axis is None]
        session = Session(session_id, owner, self, slot, b"".join(value.tobytes() for value in shared))
        self.slots.settle(slot, session, idle_timeout, now)
        owner.state_bytes += self.signature.state_bytes
        if session_id is not None:
            self.sessions += 1
        return session

    def check_given(self, given: Mapping[str, Array]) -> None:
        """Whether a session can begin with these states and constants.

        Raises:
            InputNameError: A constant that has no value of its own is not given.
        """
        kept = self.signature.kept
        for spec in kept:
            if spec.initial is None and spec.name not in given:
                raise InputNameError(
                    f"constant {spec.name!r} must be given with the initial states: {spec.dtype} {list(spec.dims)}",
                    input=spec.name,
                    expected=",".join(other.name for other in kept if other.initial is None),
                )

    def close(self, session: Session, error: EngineError | None = None) -> None:
        """End a session: what waits fails (with SESSION_NOT_FOUND, if not told otherwise), what runs is dropped."""
        session.ended = error or not_found(session.id)
        session.keep(None)
        session.owner.state_bytes -= self.signature.state_bytes
        if session.id is not None:
            self.sessions -= 1
        current = session.current
        if current is None:
            self.slots.release(session.slot)
        elif isinstance(current, Step):
            self.singles.leave(current)
        self.turns.end(session)
