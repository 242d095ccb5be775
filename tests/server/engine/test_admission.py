"""New sessions are refused by how long the steps of those that are open take."""

from pathlib import Path

import numpy as np
import pytest
from recurra_server.engine.durability import Durability
from recurra_server.engine.errors import CapacityError
from recurra_server.engine.limits import Limits
from recurra_server.engine.sessions import Session
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support import models
from tests.support.harness import Harness, load
from tests.support.owner import Owner

TARGET = 0.01
Runtimes = dict[str, OnnxRuntime]


class Calls(Harness):
    """Sessions of a model that is to answer within 10 ms."""

    def __init__(self, runtimes: Runtimes) -> None:
        super().__init__({"counter": runtimes["counter"]}, Limits(admit_below=TARGET))
        self.sessions: list[Session] = []

    def open_many(self, count: int) -> int:
        """Open up to so many; return how many were taken."""
        for taken in range(count):
            try:
                self.sessions.append(self.open("counter"))
            except CapacityError:
                return taken
        return count

    def step_all(self, seconds: float, steps: int = 1) -> None:
        """A step or chunk of every session, answered so many seconds after it came."""
        for session in self.sessions:
            self.submit(session, np.ones((steps, 1)))
        self.now += seconds
        self.run()

    def load(self, busy: float) -> None:
        """So much of a processor is in use."""
        admission = self.engine.model("counter").admission
        assert admission is not None
        admission.observe_load(busy)

    def used(self) -> float:
        """How much of what is admitted is in use."""
        model = self.engine.model("counter")
        assert model.admission is not None
        return model.admission.used(model.sessions, self.now)


def test_while_steps_are_late_nothing_is_opened_and_then_again(runtimes: Runtimes) -> None:
    calls = Calls(runtimes)
    assert calls.open_many(100) == 100
    calls.step_all(TARGET)
    assert calls.open_many(1) == 1, "just in time is in time"
    calls.step_all(1.5 * TARGET)
    with pytest.raises(CapacityError, match=r"50% of the last second's steps took longer than 10 ms") as caught:
        calls.open("counter")
    assert caught.value.retry_after == 1.0
    assert caught.value.metadata["bound"] == "latency"
    assert calls.engine.room.refused["counter", "1", "sha256:counter", "latency"] == 1
    calls.now += 0.5
    calls.step_all(0)
    assert calls.open_many(1) == 0, "the late steps are still of the last second"
    calls.now += 0.6
    assert calls.open_many(1) == 1
    for session in calls.sessions:
        assert calls.ask(session, np.ones((1, 1))).size == 1, "those that were open were served all the time"


def test_one_late_step_in_a_hundred_is_allowed(runtimes: Runtimes) -> None:
    calls = Calls(runtimes)
    calls.open_many(20)
    for _ in range(100):
        calls.step_all(0)
    calls.step_all(2 * TARGET)
    assert calls.open_many(1) == 1
    calls.step_all(2 * TARGET)
    assert calls.open_many(1) == 0


def test_a_few_late_steps_are_an_accident(runtimes: Runtimes) -> None:
    calls = Calls(runtimes)
    calls.open_many(9)
    calls.step_all(100 * TARGET)
    assert calls.open_many(1) == 1


def test_a_chunk_may_take_the_time_of_its_steps(runtimes: Runtimes) -> None:
    calls = Calls(runtimes)
    calls.open_many(20)
    calls.step_all(4 * TARGET, steps=5)
    assert calls.open_many(1) == 1
    calls.step_all(6 * TARGET, steps=5)
    assert calls.open_many(1) == 0


def test_steps_that_wait_for_their_own_session_are_not_late(runtimes: Runtimes) -> None:
    """Who sends 256 steps ahead gets the answers one after the other, of an idle server as well."""
    calls = Calls(runtimes)
    calls.open_many(1)
    calls.load(0.5)
    for _ in range(256):
        calls.submit(calls.sessions[0], np.ones((1, 1)))
    for _ in range(256):
        calls.now += TARGET / 10
        calls.run_batch()
    assert calls.used() == 0
    assert calls.open_many(5000) == 5000


def test_steps_that_pile_up_because_the_server_is_late_are_late(runtimes: Runtimes) -> None:
    """Of ten sessions that step every 32 ms; a round of all takes 40."""
    calls = Calls(runtimes)
    calls.open_many(10)
    sent = 0
    for number in range(1, 31):
        while sent <= number * 40 // 32:
            for session in calls.sessions:
                calls.submit(session, np.ones((1, 1)))
            sent += 1
        calls.now += 0.04
        calls.run_batch()
    assert calls.engine.model("counter").turns.depth > 50
    with pytest.raises(CapacityError, match="100% of the last second's steps took longer"):
        calls.open("counter")


def test_what_a_sync_session_waits_for_the_store_is_not_late(runtimes: Runtimes) -> None:
    owner = Owner({"counter": runtimes["counter"]}, Limits(admit_below=TARGET))
    session = owner.begin(Durability.SYNC)
    steps = [owner.submit(session, np.ones((1, 1))) for _ in range(30)]
    for _ in steps:
        owner.run_batch()
        owner.now += 2 * TARGET
        owner.save()
    assert owner.answered == steps
    owner.open("counter")


@pytest.mark.parametrize(("busy", "room"), [(0.375, 399), (0.6, 100), (0.74, 5), (0.99, 4), (0.01, 5000)])
def test_a_rush_is_taken_as_far_as_there_is_room(runtimes: Runtimes, busy: float, room: int) -> None:
    """What was just opened does not show in any measurement yet; it does in the next one."""
    calls = Calls(runtimes)
    calls.open_many(399)
    calls.step_all(0)
    calls.load(0.01)
    calls.open_many(1)
    calls.load(busy)
    assert calls.open_many(5000) == room
    assert calls.open_many(1) == (busy == 0.01)
    calls.load(0.7)
    assert calls.open_many(1) == 1


def test_what_is_in_use_is_told_before_sessions_are_refused(runtimes: Runtimes) -> None:
    calls = Calls(runtimes)
    calls.load(0.6)
    calls.open_many(500)
    assert calls.used() == 0, "nobody steps"
    for _ in range(2):
        calls.step_all(0)
    assert calls.used() == pytest.approx(0.8), "of three quarters of a processor"
    del calls.sessions[10:]
    calls.step_all(2 * TARGET)
    assert calls.used() == pytest.approx(0.99, abs=0.001), "10 late steps of 1,010"
    assert calls.open_many(1) == 1
    calls.step_all(2 * TARGET)
    assert calls.used() == 1
    assert calls.open_many(1) == 0


@pytest.mark.parametrize(("busy", "share", "room"), [(0.02, 0.5, 5000), (0.6, 0.5, 4), (0.6, 0.2, 5000)])
def test_a_few_sessions_tell_little_of_what_one_costs(runtimes: Runtimes, busy: float, share: float, room: int) -> None:
    """As long as the processor is idle, or their steps are answered within a fraction of the target."""
    calls = Calls(runtimes)
    calls.open_many(2)
    calls.step_all(share * TARGET)
    calls.load(busy)
    assert calls.open_many(5000) == room


def test_the_load_of_a_rush_was_that_of_half_of_it(runtimes: Runtimes) -> None:
    """While it was measured, sessions were still coming: with all of them it will be twice as much."""
    calls = Calls(runtimes)
    calls.load(0.01)
    calls.open_many(1)
    calls.step_all(0)
    assert calls.open_many(399) == 399
    calls.load(0.25)
    calls.step_all(0)
    assert calls.open_many(5000) == 200


def test_sessions_that_come_and_go_are_no_rush(runtimes: Runtimes) -> None:
    calls = Calls(runtimes)
    calls.open_many(2)
    calls.load(1.0)
    for _ in range(1000):
        calls.step_all(0)
        calls.engine.close(calls.open("counter"))


def test_sessions_that_do_nothing_can_be_opened_in_any_number(runtimes: Runtimes) -> None:
    calls = Calls(runtimes)
    calls.load(1.0)
    assert calls.open_many(5000) == 5000


def test_the_target_is_a_quarter_of_the_time_between_steps(runtimes: Runtimes, tmp_path: Path) -> None:
    """As far as the model says; and nothing is refused where nothing says how fast it is to be."""
    hurried = Harness({"counter": load(tmp_path, models.counter(step_seconds=0.032))}).engine.model("counter")
    assert hurried.admission is not None
    assert hurried.admission.target == 0.008
    assert Harness(runtimes).engine.model("counter").admission is None
    assert Harness(runtimes, Limits(admit_below=0)).engine.model("counter").admission is None
