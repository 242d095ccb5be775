"""Singles: steps and chunks that came one by one, and run together with those of other sessions."""

from collections.abc import Sequence

from recurra_server.engine.batch import Batch, stack_inputs
from recurra_server.engine.errors import DeadlineError, InputNotFiniteError, InputRefusedError, InternalError
from recurra_server.engine.scheduler import Call, Scheduler
from recurra_server.engine.sessions import KeptReply, Session, state_not_finite
from recurra_server.engine.slots import SlotTable, rows_of
from recurra_server.engine.steps import Step
from recurra_server.engine.turns import Turns
from recurra_server.engine.workspace import Workspaces


class Singles:
    """The steps of one model that came one by one, from when they are ready until they are answered."""

    def __init__(
        self,
        scheduler: Scheduler,
        slots: SlotTable[Session],
        turns: Turns,
        workspaces: Workspaces,
    ) -> None:
        self._scheduler = scheduler
        self._slots = slots
        self._turns = turns
        self._workspaces = workspaces
        self._running: Batch | None = None

    def stack(self, call: Call, now: float) -> Batch | None:
        """Make a batch of the steps that somebody waits for, or of suspects; None where there are none.

        Raises:
            Exception: A bug, or no memory; the steps have failed, others can go on.
        """
        steps = call.steps if call.suspect else [step for step in call.steps if self._is_wanted(step, now)]
        try:
            self._running = self._stack(steps, call.length, now)
        except Exception:
            ended = [step for step in steps if step.session.closed and step.session.current is step]
            self._abandon(steps, now)
            for step in ended:
                self._give_up_slots(step)
            raise
        return self._running

    def commit(self, batch: Batch, now: float, compute: float) -> None:
        """Take in what a batch that was run has left: keep the next states, answer the steps that are complete."""
        self._running = None
        steps, slots, workspace = batch.steps, batch.slots, batch.workspace
        outputs = list(zip(*[tensor.split() for tensor in workspace.outputs], strict=True))
        states = [tensor.rows for tensor in workspace.next]
        lost = {row for row, step in enumerate(steps) if step.session.ended is not None}
        bad = {row for state in workspace.next if not state.all_finite() for row in state.rows_not_finite()}
        if lost or bad or batch.begins_chunks:
            good = [row for row in range(len(steps)) if row not in lost and row not in bad]
            for row in good:
                if steps[row].position == 0 and steps[row].count != batch.length:
                    # The session keeps its own states until the whole chunk has succeeded.
                    steps[row].slot = self._slots.allocate()
            slots = rows_of([steps[row].slot for row in good])
            states = [rows[good] for rows in states]
        self._slots.scatter(slots, states)
        self._slots.touch(slots, now)
        for row, step in enumerate(steps):
            step.compute += compute
            step.batch_size = len(steps)
            if row in lost:
                self._give_up_slots(step)
            elif row in bad:
                self._turns.fail(step, state_not_finite(step.session), now)
            else:
                self._advance(step, outputs[row], batch.length, now)

    def fail(self, batch: Batch, error: Exception, now: float) -> None:
        """The model refused a batch: if it was of one step, that one has failed, else it has to be found out which."""
        self._running = None
        ended = [step for step in batch.steps if step.session.closed]
        if len(batch) > 1:  # with those that have ended: whose call it was shows whose fault it can be
            self.run_again(batch.steps, now)
        else:
            (step,) = batch.steps
            self._scheduler.set_apart(step.session.owner, now)
            if not ended:
                message = f"the model failed on this input{_reason(error)}"
                self._turns.fail(step, InputRefusedError(message, session_id=step.session.id), now)
        for step in ended:
            self.leave(step)

    def run_again(self, steps: Sequence[Step], now: float) -> None:
        """Run these steps of a call that the model refused in fewer at a time: so it shows whose fault it is."""
        if steps:
            self._scheduler.put_back(steps, now)

    def abandon(self, batch: Batch, now: float) -> None:
        """A bug: the batch could not be committed. Its steps fail, as far as they are not answered yet."""
        self._running = None
        self._abandon(batch.steps, now)

    def leave(self, step: Step) -> None:
        """The session of a step in flight has ended; if the step runs, or has to, its slots are given up after that."""
        runs = self._running is not None and step in self._running.steps
        if not runs and not self._scheduler.is_suspect(step):
            self._give_up_slots(step)

    # --- inside ------------------------------------------------------------------------

    def _is_wanted(self, step: Step, now: float) -> bool:
        """Whether somebody still waits for a ready step; if not, it leaves."""
        if step.session.ended is not None:  # answered then
            return False
        if step.waiter.gone:
            self._slots.touch(step.session.slot, now)
            self._turns.over(step, now)
            return False
        if step.deadline <= now:
            message = "the deadline passed before the step was run; it was not applied"
            self._turns.fail(step, DeadlineError(message, session_id=step.session.id), now)
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
                self._turns.fail(steps[row], InputNotFiniteError(message, input=name), now)
            return self._stack([step for row, step in enumerate(steps) if row not in bad], length, now)
        slots = rows_of([step.slot for step in steps])
        self._slots.gather(slots, [tensor.rows for tensor in workspace.kept])
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
            self._slots.move(session.slot, step.slot)
            self._slots.touch(step.slot, now)
            session.slot = step.slot
        session.applied += step.count
        step.last_number = session.applied
        reply = None  # kept is that of the last step, and only where a number is there to ask for it by
        if step.number:
            names = () if step.choice is None else step.choice.names
            reply = KeptReply(step.number, step.count, step.outputs, names)
        session.keep(reply)
        if session.durable is None:
            self._turns.over(step, now)
        else:
            self._turns.keep(step, now)

    def _abandon(self, steps: Sequence[Step], now: float) -> None:
        for step in steps:
            if step.session.current is step and not step.session.closed:
                self._turns.fail(step, InternalError("the step failed inside the server; its log tells more"), now)

    def _give_up_slots(self, step: Step) -> None:
        """The session has ended and its step is out of flight: nobody refers to its slots any more."""
        self._slots.release(step.session.slot)
        if step.slot != step.session.slot:
            self._slots.release(step.slot)


def _reason(error: Exception) -> str:
    """What ONNX Runtime says of an input, without the places in its source and in the graph."""
    text = str(error).rpartition("Status Message: ")[2].splitlines()
    return f": {text[0][:200]}" if text and not text[0].startswith(("/", "[")) else ""
