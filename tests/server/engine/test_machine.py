"""A machine of random operations on an engine, held against a few lines of plain Python."""

from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from recurra_server.engine.block import Block
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import SessionExpiredError
from recurra_server.engine.limits import Limits
from recurra_server.engine.sessions import Session
from recurra_server.engine.steps import Step
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support import models
from tests.support.harness import BlockAsker, Harness, load, outputs_of, rows_of

_IDLE = 10.0


@dataclass
class Expected:
    """What a session should be, once everything sent to it has been run."""

    session: Session
    total: float = 0.0
    steps: int = 0
    answers: list[tuple[Step, list[float] | str]] = field(default_factory=list)


def _counter() -> OnnxRuntime:
    with TemporaryDirectory() as folder:
        return load(Path(folder), models.counter())


class EngineMachine(RuleBasedStateMachine):
    """Sessions of the counter model; the model of a session is its sum and its number of steps."""

    sessions = Bundle("sessions")
    runtime = _counter()

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(max_batch_size=3, max_piece_steps=2, default_idle_timeout=_IDLE)
        self.harness = Harness({"counter": self.runtime}, limits)
        self.open_sessions: list[Expected] = []
        self.blocks: list[tuple[Block, list[tuple[Expected, list[float] | str]]]] = []

    @property
    def engine(self) -> Engine:
        return self.harness.engine

    @rule(target=sessions)
    def open(self) -> Expected:
        expected = Expected(self.harness.open("counter"))
        self.open_sessions.append(expected)
        return expected

    @rule(one=sessions, values=st.lists(st.integers(-9, 9), min_size=1, max_size=7), numbered=st.booleans())
    def send(self, one: Expected, values: list[int], numbered: bool) -> None:
        if one.session.closed:
            return
        number = one.steps + 1 if numbered else 0
        step = self.harness.submit(one.session, np.array(values, np.float32)[:, None], number=number)
        sums = (one.total + np.cumsum(values)).tolist()
        one.total, one.steps = sums[-1], one.steps + len(values)
        one.answers.append((step, sums))

    @rule(one=sessions, before=st.integers(0, 6))
    def send_nonsense(self, one: Expected, before: int) -> None:
        if not one.session.closed:
            step = self.harness.submit(one.session, np.array([[1.0]] * before + [[np.nan]]))
            one.answers.append((step, "INPUT_NOT_FINITE"))

    @rule(one=sessions, ahead=st.integers(2, 9))
    def send_ahead(self, one: Expected, ahead: int) -> None:
        if not one.session.closed:
            step = self.harness.submit(one.session, np.zeros((1, 1)), number=one.steps + ahead)
            one.answers.append((step, "STEP_GAP"))

    @rule(
        steps=st.sampled_from([1, 2]),
        numbered=st.booleans(),
        values=st.lists(st.lists(st.integers(-9, 9), min_size=2, max_size=2), min_size=3, max_size=3),
        bad=st.none() | st.integers(0, 2),
    )
    def send_block(self, steps: int, numbered: bool, values: list[list[int]], bad: int | None) -> None:
        """A row for each of some sessions at rest; one of the rows may be nonsense."""
        ready = [one for one in self.open_sessions if one.session.current is None][:3]
        if not ready:
            return
        x = np.array(values, np.float32)[: len(ready), :steps, None]
        if bad is not None and bad < len(ready):
            x[bad, -1] = np.nan
        sent: list[tuple[Expected, list[float] | str]] = []
        for row, one in enumerate(ready):
            if row == bad:
                sent.append((one, "INPUT_NOT_FINITE"))
                continue
            sums = (one.total + np.cumsum(x[row, :, 0])).tolist()
            one.total, one.steps = sums[-1], one.steps + steps
            sent.append((one, sums))
        self.blocks.append((self.harness.submit_block([one.session for one in ready], x, numbered=numbered), sent))

    @rule(batches=st.integers(1, 4))
    def run_some(self, batches: int) -> None:
        for _ in range(batches):
            self.harness.run_batch()

    @rule()
    def settle(self) -> None:
        """Run everything: every session is what it should be, every answer was right."""
        self.harness.run()
        for one in self.open_sessions:
            assert one.session.applied == one.steps
            for step, expected in one.answers:
                if isinstance(expected, str):
                    assert step.error is not None
                    assert step.error.reason == expected
                else:
                    assert outputs_of(step).ravel().tolist() == expected
            one.answers.clear()
        for block, sent in self.blocks:
            for row, (one, expected) in enumerate(sent):
                if row in block.errors:
                    ended = one.session.closed and block.errors[row].reason == "SESSION_NOT_FOUND"
                    assert ended or block.errors[row].reason == expected
                    assert not rows_of(block)[row].any()
                else:
                    assert rows_of(block)[row, :, 0].tolist() == expected
        self.blocks.clear()
        model = self.engine.model("counter")
        assert model.turns.depth == 0
        assert model.slots.in_use == len(self.open_sessions), "a slot was not given back"

    @rule(one=consumes(sessions))
    def close(self, one: Expected) -> None:
        if one.session.closed:
            return
        self.engine.close(one.session)
        self.open_sessions.remove(one)
        for step, _ in one.answers:
            assert step in self.harness.answered, "whatever was sent is answered"

    @rule(one=sessions, target=sessions)
    def fork(self, one: Expected) -> Expected:
        self.settle()
        if one.session.closed:
            return one
        copy = Expected(self.harness.fork(one.session), one.total, one.steps)
        self.open_sessions.append(copy)
        return copy

    @rule(one=sessions)
    def reset(self, one: Expected) -> None:
        self.settle()
        if not one.session.closed:
            self.engine.reset(one.session, self.harness.now)
            one.total, one.steps = 0.0, 0

    @rule(seconds=st.floats(0.0, 2 * _IDLE))
    def let_time_pass(self, seconds: float) -> None:
        self.settle()
        self.harness.now += seconds
        self.engine.expire(self.harness.now)
        for one in list(self.open_sessions):
            if one.session.closed:
                self.open_sessions.remove(one)
                assert one.session.id is not None
                with pytest.raises(SessionExpiredError):
                    self.engine.session(one.session.id, self.harness.now)

    @invariant()
    def nothing_is_lost_or_left_over(self) -> None:
        model = self.engine.model("counter")
        assert model.sessions == len(self.open_sessions)
        unanswered = sum(step not in self.harness.answered for one in self.open_sessions for step, _ in one.answers)
        rows = sum(len(block) for block, _ in self.blocks if not waiter_of(block).answers)
        assert model.turns.depth == unanswered + rows
        slots = model.slots
        in_use = {slot for slot, owner in enumerate(slots.owners) if owner is not None}
        ended = {
            session.slot
            for block, _ in self.blocks
            for session in block.sessions
            if session.closed and not waiter_of(block).answers
        }
        assert in_use == {one.session.slot for one in self.open_sessions} | ended
        assert len(set(slots._free)) == len(slots._free), "a slot was given back twice"


def waiter_of(block: Block) -> BlockAsker:
    assert isinstance(block.waiter, BlockAsker)
    return block.waiter


TestEngineMachine = EngineMachine.TestCase
TestEngineMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
