"""The engine without a server: real models in ONNX Runtime, a clock that is an argument."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from recurra_server.engine import snapshots
from recurra_server.engine.block import Block
from recurra_server.engine.engine import Engine
from recurra_server.engine.limits import Limits
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.engine.standing import Standing
from recurra_server.engine.steps import Step
from recurra_server.runtimes.onnx import OnnxRuntime

Array = NDArray[Any]


class Asker:
    """Waits for one step."""

    def __init__(self, answers: list[Step]) -> None:
        self.gone = False
        self._answers = answers

    def answered(self, step: Step) -> None:
        """Note the answer."""
        assert not self.gone
        self._answers.append(step)


class BlockAsker:
    """Waits for one block."""

    def __init__(self) -> None:
        self.gone = False
        self.answers: list[Block] = []

    def block_answered(self, block: Block) -> None:
        """Note the answer."""
        assert not self.gone
        self.answers.append(block)


def walk_away(step: Step) -> None:
    """Wait for a step no longer."""
    assert isinstance(step.waiter, Asker)
    step.waiter.gone = True


class Harness:
    """An engine whose batches are run when the test says so.

    Attributes:
        now: The time, in seconds; set it to let time pass.
        answered: Steps in the order they were answered.
    """

    def __init__(self, models: Mapping[str, OnnxRuntime], limits: Limits | None = None) -> None:
        self.now = 0.0
        self.answered: list[Step] = []
        self.engine = Engine(limits or Limits())
        self.models: list[ServedModel] = []
        for name, runtime in models.items():
            model = ServedModel(
                name,
                "1",
                f"sha256:{name}",
                runtime.signature,
                runtime,
                self.engine.limits,
                max_batch_size=1 if runtime.fixed_batch else None,
                max_piece_steps=1 if runtime.fixed_steps else None,
            )
            self.engine.add_model(model)
            self.models.append(model)

    def open(self, model: str, **options: Any) -> Session:
        """Open a session."""
        return self.engine.open(self.engine.model(model), self.now, **options)

    def fork(self, session: Session, **options: Any) -> Session:
        """Open a copy of a session."""
        return self.engine.go_on(Standing.take(session, self.now), self.now, caller=session.owner, **options)

    def restore(self, data: bytes, **options: Any) -> Session:
        """Open a session that goes on where a snapshot was taken.

        Raises:
            EngineError: It cannot.
        """
        return self.engine.go_on(snapshots.read(self.engine, data), self.now, **options)

    def submit(
        self,
        session: Session,
        x: Array,
        *,
        number: int = 0,
        deadline: float = float("inf"),
        outputs: Sequence[str] = (),
    ) -> Step:
        """Send a chunk `[T, *dims]` of a model with one input."""
        spec = session.model.signature.inputs[0]
        chunk = np.ascontiguousarray(x, spec.np_dtype)
        step = Step(
            session,
            (chunk.tobytes(),),
            len(chunk),
            Asker(self.answered),
            self.now,
            number=number,
            deadline=deadline,
            choice=session.model.choose(outputs),
        )
        session.model.turns.submit(step, self.now)
        return step

    def submit_block(
        self,
        sessions: list[Session],
        x: Array,
        *,
        numbered: bool = False,
        deadline: float = float("inf"),
        outputs: Sequence[str] = (),
    ) -> Block:
        """Send rows `[B, T, *dims]` of a model with one input, which it must take as a block."""
        model = sessions[0].model
        numbers = [session.applied + 1 for session in sessions] if numbered else []
        assert model.fits_block(x.shape[1])
        assert model.blocks.takes(sessions, numbers)
        rows = np.ascontiguousarray(x, model.signature.inputs[0].np_dtype)
        block = Block(
            sessions,
            (rows.tobytes(),),
            x.shape[1],
            BlockAsker(),
            self.now,
            numbered=numbered,
            deadline=deadline,
            choice=model.choose(outputs),
        )
        model.blocks.submit(block)
        return block

    def run_batch(self) -> int:
        """Run one batch of any model that has one; return its number of steps, 0 where nothing was ready."""
        for model in self.models:
            batch = model.next_batch(self.now)
            if batch is not None:
                try:
                    batch.run()
                except Exception as error:
                    model.fail(batch, error, self.now)
                else:
                    model.commit(batch, self.now, 0.0)
                return len(batch)
        return 0

    def run(self) -> None:
        """Run until nothing is ready."""
        while self.run_batch():
            pass

    def ask(self, session: Session, x: Array, **options: Any) -> Array:
        """Send a chunk, run everything, and return its outputs `[T, *dims]`.

        Raises:
            EngineError: It failed.
        """
        step = self.submit(session, x, **options)
        self.run()
        return outputs_of(step)


def rows_of(block: Block) -> Array:
    """The outputs `[B, T, *dims]` of a block that was answered, of a model with one output."""
    assert isinstance(block.waiter, BlockAsker)
    assert block.waiter.answers == [block], "answered once"
    spec = block.sessions[0].model.signature.outputs[0]
    return np.frombuffer(block.outputs[0], spec.np_dtype).reshape(len(block), block.count, *spec.dims)


def outputs_of(step: Step) -> Array:
    """The outputs `[T, *dims]` of a model with one output.

    Raises:
        EngineError: The step failed.
    """
    if step.error is not None:
        raise step.error
    spec = step.session.model.signature.outputs[0]
    return np.frombuffer(step.outputs[0], spec.np_dtype).reshape(step.count, *spec.dims)


def whole(runtime: OnnxRuntime, x: Array) -> Array:
    """The outputs `[T, *dims]` of a whole sequence `[T, *dims]` run at once, alone, from the initial states."""
    signature = runtime.signature
    spec = signature.inputs[0]
    inputs = [np.empty(spec.graph_shape(1, len(x)), spec.np_dtype)]
    spec.rows(inputs[0])[0] = x
    inputs += [np.full(state.graph_shape(1), state.initial, state.np_dtype) for state in signature.states]
    output: Array = signature.outputs[0].rows(np.asarray(runtime.run(inputs)[0]))[0]
    return output


def load(folder: Path, model: onnx.ModelProto) -> OnnxRuntime:
    """Run a model without a repository."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    return OnnxRuntime(path)
