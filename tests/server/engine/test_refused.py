"""A step that the model refuses fails the call that it shares: what that costs others, and for how long."""

from contextlib import nullcontext
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import CapacityError
from recurra_server.engine.limits import Limits
from recurra_server.engine.sessions import Session
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support.harness import Harness

Runtimes = dict[str, OnnxRuntime]
GOOD, BAD = np.array([1]), np.array([99])  # the model knows 0 to 4


def opened(harness: Harness, count: int, **options: Any) -> list[Session]:
    return [harness.open("letters", **options) for _ in range(count)]


def calls(harness: Harness) -> int:
    """Run everything; return how many model calls it took."""
    count = 0
    while harness.run_batch():
        count += 1
    return count


@pytest.mark.parametrize("bad", [0, 100, 255])
def test_few_calls_tell_which_of_256_steps_it_was(runtimes: Runtimes, bad: int) -> None:
    harness = Harness(runtimes)
    sessions = opened(harness, 256)
    steps = [harness.submit(session, BAD if row == bad else GOOD) for row, session in enumerate(sessions)]
    assert calls(harness) == 1 + 2 * 8
    assert [row for row, step in enumerate(steps) if step.error is not None] == [bad]


def test_few_calls_tell_which_row_of_a_block_it_was(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    block = harness.submit_block(opened(harness, 64), np.array([BAD if row == 40 else GOOD for row in range(64)]))
    assert calls(harness) == 1 + 2 * 6
    assert list(block.errors) == [40]


def test_few_calls_tell_which_of_256_callers_it_was(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    for name in range(256):
        harness.submit(harness.open("letters", caller=Account(str(name))), BAD if name == 7 else GOOD)
    assert calls(harness) == 1 + 2 * 8


def test_what_waits_already_when_its_caller_is_found_out_holds_up_nobody(runtimes: Runtimes) -> None:
    harness = Harness(runtimes, Limits(max_batch_size=4))
    noisy, quiet = Account("noisy"), Account("quiet")
    for session in opened(harness, 40, caller=noisy):
        harness.submit(session, BAD)
    others = [harness.submit(session, GOOD) for session in opened(harness, 16, caller=quiet)]
    for _ in range(14):
        harness.run_batch()
    assert all(step in harness.answered for step in others)
    assert noisy.queued > 30


def test_whose_fault_a_failed_call_is_does_not_depend_on_who_has_closed_meanwhile(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    model = harness.engine.model("letters")
    (bad,), (good,), (third,) = (opened(harness, 1, caller=Account(name)) for name in ("bad", "good", "third"))
    harness.submit(bad, BAD)
    step = harness.submit(good, GOOD)
    batch = model.next_batch(harness.now)
    assert batch is not None
    with pytest.raises(Exception, match="indices") as caught:
        batch.run()
    harness.engine.close(bad)  # while the call is on its thread
    model.fail(batch, caught.value, harness.now)
    harness.run()
    assert step.error is None
    assert model.slots.in_use == 2
    for session in (good, third):
        harness.submit(session, GOOD)
    assert harness.run_batch() == 2, "nothing of theirs was ever refused, so they share calls"


def test_who_sent_nothing_for_a_minute_that_was_refused_shares_calls_again(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    (clumsy,), (other,) = (opened(harness, 1, caller=Account(name)) for name in ("clumsy", "other"))

    def sizes(x: Any) -> list[int]:
        for session in (clumsy, other):
            harness.submit(session, x if session is clumsy else GOOD)
        batches = []
        while size := harness.run_batch():
            batches.append(size)
        return batches

    assert sizes(GOOD) == [2]
    assert sizes(BAD) == [2, 1, 1]
    harness.now += 59
    assert sizes(BAD) == [1, 1], "by itself, for the one a minute ago"
    harness.now += 59
    assert sizes(GOOD) == [1, 1]
    harness.now += 1
    sizes(GOOD)
    assert sizes(GOOD) == [2]


def test_what_was_refused_is_run_again_though_new_steps_share_the_calls_of_others(runtimes: Runtimes) -> None:
    """When the minute apart is over, nothing that was put back in it is left behind."""
    harness = Harness(runtimes, Limits(max_batch_size=4))
    clumsy, other = Account("clumsy"), Account("other")
    steps = [harness.submit(*one) for one in zip(opened(harness, 2, caller=clumsy), (GOOD, BAD), strict=True)]
    harness.run_batch()
    harness.now += 61
    news = opened(harness, 8, caller=other)
    for theirs, ours in zip(news, opened(harness, 8, caller=clumsy), strict=True):
        harness.submit(theirs, GOOD)
        harness.submit(ours, GOOD)
        harness.run_batch()
    assert all(step in harness.answered for step in steps)


def test_what_cannot_be_run_again_gives_back_the_memory_of_who_has_left(
    runtimes: Runtimes, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness = Harness(runtimes)
    model = harness.engine.model("letters")
    sessions = [harness.open("letters", caller=Account(name)) for name in ("bad", "good")]
    bad, good = [harness.submit(*one) for one in zip(sessions, (BAD, GOOD), strict=True)]
    harness.run_batch()
    harness.engine.close(sessions[0])
    with monkeypatch.context() as patch:
        patch.setattr(model.slots, "gather", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            harness.run_batch()
    harness.run()
    assert [step.error is None for step in (bad, good)] == [False, True]
    assert model.slots.in_use == 1


@pytest.mark.parametrize("told_apart", [True, False])
def test_whose_steps_are_late_for_what_was_refused_keeps_no_others_out(runtimes: Runtimes, told_apart: bool) -> None:
    """But where callers are not told apart: there it may be any of them."""
    harness = Harness(runtimes, Limits(admit_below=0.01))
    noisy = Account("noisy" if told_apart else "")
    for row, session in enumerate(opened(harness, 64, caller=noisy)):
        harness.submit(session, BAD if row % 2 else GOOD)
    while harness.run_batch():
        harness.now += 0.001
    assert sum(step.error is None for step in harness.answered) == 32
    with nullcontext() if told_apart else pytest.raises(CapacityError, match="took longer than 10 ms"):
        harness.open("letters")
