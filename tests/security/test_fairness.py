"""Callers take turns, and none takes what is others'."""

import asyncio
import contextlib
from pathlib import Path

import numpy as np
import pytest
from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import CapacityError
from recurra_server.engine.limits import Limits
from recurra_server.engine.sessions import Session
from recurra_server.rpc.turnstile import EACH, Turnstile
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support import foreign
from tests.support.attacks import Attack
from tests.support.harness import Harness, walk_away


def test_callers_take_turns_in_the_batch(runtimes: dict[str, OnnxRuntime], attack: Attack) -> None:
    harness = Harness({"counter": runtimes["counter"]}, Limits(max_batch_size=4))
    noisy, quiet = Account("noisy"), Account("quiet")
    theirs = [harness.open("counter", caller=noisy) for _ in range(40)]
    for session in theirs:
        harness.submit(session, np.ones((1, 1), np.float32))
    step = harness.submit(harness.open("counter", caller=quiet), np.ones((1, 1), np.float32))
    harness.run_batch()
    assert step in harness.answered, "one of forty-one, and last to come: in the first batch all the same"
    harness.run()
    assert len(harness.answered) == 41
    assert noisy.queued == quiet.queued == 0
    attack("gRPC port", "forty steps at once, before another's one", "in the first batch is the other's, too")


def test_turns_go_round_where_there_are_more_callers_than_a_batch_has_rows(
    runtimes: dict[str, OnnxRuntime], attack: Attack
) -> None:
    harness = Harness({"counter": runtimes["counter"]}, Limits(max_batch_size=2))
    callers = [Account(str(number)) for number in range(6)]
    for caller in callers:
        for _ in range(4):
            harness.submit(harness.open("counter", caller=caller), np.ones((1, 1), np.float32))
    for waiting in (3, 2, 1, 0):
        assert [harness.run_batch() for _ in range(3)] == [2, 2, 2]
        assert [caller.queued for caller in callers] == [waiting] * 6
    attack("gRPC port", "more callers than a batch has rows, who all send more than it takes", "as many rows for each")


def test_who_has_a_constant_for_each_session_slows_down_only_itself(tmp_path: Path, attack: Attack) -> None:
    """Sessions that differ in what the graph takes once a call cannot share one."""
    harness = Harness({"constants": OnnxRuntime(foreign.ALL["constants"].publish(tmp_path, "constants"))})
    noisy, quiet = Account("noisy"), Account("quiet")

    def opened(caller: Account, gain: int) -> Session:
        given = {"speaker": np.zeros(2, np.float32), "gain": np.array(gain, np.float32)}
        return harness.open("constants", caller=caller, initial_states=given)

    for gain in range(100):
        harness.submit(opened(noisy, gain), np.ones((1, 2)))
    ours = opened(quiet, 1000)
    for _ in range(10):
        step = harness.submit(ours, np.ones((1, 2)))
        assert [harness.run_batch(), harness.run_batch()] == [1, 1]
        assert step in harness.answered
    assert noisy.queued == 90
    harness.run()
    attack("gRPC port", "a hundred sessions of which no two can share a model call", "one turn among callers")


@pytest.mark.parametrize("noisy_sends", ["blocks", "steps"])
def test_who_sends_one_kind_has_no_more_turns_than_each_of_those_who_send_the_other(
    tmp_path: Path, noisy_sends: str, attack: Attack
) -> None:
    harness = Harness(
        {"constants": OnnxRuntime(foreign.ALL["constants"].publish(tmp_path, "constants"))}, Limits(max_batch_size=2)
    )

    def opened(caller: Account, gain: int) -> list[Session]:
        given = {"speaker": np.zeros(2, np.float32), "gain": np.array(gain, np.float32)}
        return [harness.open("constants", caller=caller, initial_states=given) for _ in range(2)]

    def send(sessions: list[Session], kind: str) -> None:
        if kind == "blocks":
            harness.submit_block(sessions, np.ones((2, 1, 2)))
        else:
            for session in sessions:
                harness.submit(session, np.ones((1, 2)))

    noisy, quiets = Account("noisy"), [Account(str(number)) for number in range(20)]
    for _ in range(100):
        send(opened(noisy, 1000), noisy_sends)
    for gain, quiet in enumerate(quiets):
        send(opened(quiet, gain), "steps" if noisy_sends == "blocks" else "blocks")
    for _ in range(21):
        harness.run_batch()
    assert sum(quiet.queued for quiet in quiets) == 0, "a call for each, and one for the noisy one"
    assert noisy.queued == 198
    harness.run()
    assert noisy.queued == 0
    attack("gRPC port", "a hundred `StepBatch` beside others' steps, and the other way round", "one turn among callers")


@pytest.mark.parametrize("token", [1, 99], ids=["taken", "refused"])
def test_who_sends_chunks_of_all_lengths_slows_down_only_itself(
    runtimes: dict[str, OnnxRuntime], token: int, attack: Attack
) -> None:
    """Each length has calls of its own, also of who runs apart."""
    harness = Harness({"letters": runtimes["letters"]})
    noisy, quiet = Account("noisy"), Account("quiet")
    lengths = [1, 2, 4, 8, 16, 32, 64] * 20
    for length in lengths:
        harness.submit(harness.open("letters", caller=noisy), np.full(length, token))
    ours = harness.open("letters", caller=quiet)
    harness.run_batch()
    for _ in range(6):
        step = harness.submit(ours, np.array([1]))
        harness.run_batch()
        harness.run_batch()
        assert step in harness.answered
    harness.run()
    assert len(harness.answered) == len(lengths) + 6
    assert noisy.queued == quiet.queued == 0
    attack("gRPC port", "chunks of all lengths at once, also such as the model refuses", "one turn among callers")


def test_who_sends_what_the_model_refuses_slows_down_only_itself(
    runtimes: dict[str, OnnxRuntime], attack: Attack
) -> None:
    """ONNX Runtime fails a whole call for one index that its model does not know."""
    harness = Harness({"letters": runtimes["letters"]})
    noisy, quiet = Account("noisy"), Account("quiet")
    theirs = [harness.open("letters", caller=noisy) for _ in range(64)]
    ours = [harness.open("letters", caller=quiet) for _ in range(8)]
    sent, calls = [], []
    for _ in range(10):
        sent += [harness.submit(session, np.array([99 if row % 3 else 1])) for row, session in enumerate(theirs)]
        steps = [harness.submit(session, np.array([1])) for session in ours]
        calls.append(0)
        while not all(step in harness.answered for step in steps):
            harness.run_batch()
            calls[-1] += 1
    assert calls[0] <= 4, "the first time it has to be found out whose fault it is"
    assert max(calls[1:]) <= 2, "then its steps have calls of their own, by turns with those of others"
    harness.run()
    assert [step.error is not None for step in sent] == [row % 3 > 0 for row in range(64)] * 10
    assert noisy.queued == quiet.queued == 0
    attack("gRPC port", "steps that the model refuses, in all batches", "others' wait for one more model call")


@pytest.mark.parametrize("how", ["deadline", "hangs up", "closes"])
def test_who_does_not_wait_for_what_the_model_refuses_is_found_out_all_the_same(
    runtimes: dict[str, OnnxRuntime], how: str, attack: Attack
) -> None:
    """No step of theirs is there any more when the steps of the call that it failed are run again."""
    harness = Harness({"letters": runtimes["letters"]})
    noisy = Account("noisy")
    ours = [harness.open("letters", caller=Account(str(number))) for number in range(15)]
    calls = []
    for _ in range(3):
        theirs = harness.open("letters", caller=noisy)
        bad = harness.submit(theirs, np.array([99]), deadline=harness.now + (0.5 if how == "deadline" else 1e9))
        steps = [harness.submit(session, np.array([1])) for session in ours]
        calls.append(1)
        harness.run_batch()
        harness.now += 1
        if how == "hangs up":
            walk_away(bad)
        elif how == "closes":
            harness.engine.close(theirs)
        while not all(step in harness.answered for step in steps):
            harness.run_batch()
            calls[-1] += 1
        harness.run()
        if how != "closes":
            harness.engine.close(theirs)
    assert calls[0] > 2
    assert calls[1:] == [2, 2], "by turns: one of theirs, one of all others"
    assert [session.applied for session in ours] == [3] * 15
    assert noisy.queued == 0
    assert harness.engine.model("letters").slots.in_use == 15, "nothing of who has left is kept"
    attack(
        "gRPC port", "refused steps of who hangs up before it shows whose they were", "a turn among callers, as if not"
    )


def test_nobody_holds_more_of_the_queue_than_is_left_for_others(
    runtimes: dict[str, OnnxRuntime], attack: Attack
) -> None:
    harness = Harness({"counter": runtimes["counter"]}, Limits(max_queue=30))
    accepted = []
    for name in ("first", "second", "third"):
        account = Account(name)
        with contextlib.suppress(CapacityError):
            while True:
                harness.submit(harness.open("counter", caller=account), np.ones((1, 1), np.float32))
        accepted.append(account.queued)
    assert accepted == [15, 8, 4]
    harness.run()
    assert len(harness.answered) == sum(accepted)
    attack("gRPC port", "filling the queue", "half of what is left, for each")


async def test_the_turnstile_lets_the_next_in_where_who_was_let_in_sends_nothing() -> None:
    turnstile, noisy, quiet = Turnstile(asyncio.get_running_loop().time), Account("noisy"), Account("quiet")
    assert turnstile.enter(quiet) is None
    waits = [wait for wait in [turnstile.enter(noisy) for _ in range(5 * EACH)] if wait is not None]
    assert len(waits) == 4 * EACH
    async with asyncio.timeout(0.5):  # before the quiet one counts as gone
        await asyncio.gather(*waits)


async def test_the_turnstile_lets_a_few_in_each_turn_where_there_are_several() -> None:
    turnstile, noisy, quiet = Turnstile(asyncio.get_running_loop().time), Account("noisy"), Account("quiet")
    assert all(turnstile.enter(noisy) is None for _ in range(10 * EACH)), "alone, nobody waits"
    assert turnstile.enter(quiet) is None
    await asyncio.sleep(0)
    waits = [turnstile.enter(noisy) for _ in range(5 * EACH)]
    assert sum(wait is None for wait in waits) == EACH
    assert turnstile.enter(quiet) is None
    left = [wait for wait in waits if wait is not None]
    left.pop(0).cancel()  # its stream is gone: nobody waits for its place
    for turns in range(1, 5):
        await asyncio.sleep(0)
        assert sum(wait.done() for wait in left) == min(turns * EACH, len(left))
        assert turnstile.enter(quiet) is None
