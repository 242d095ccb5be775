"""Models that others exported: whatever their graph looks like, a session answers as its steps do when run alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from recurra_server.engine.errors import InputNameError
from recurra_server.engine.limits import Limits
from recurra_server.engine.sessions import Session
from recurra_server.engine.signature import Signature
from recurra_server.engine.steps import Step
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import probe

from tests.support import foreign
from tests.support.harness import Asker, Harness
from tests.support.reference import step_by_step

Array = NDArray[Any]
EXACT = set(foreign.ALL) - {"control flow"}  # sums and products of whole numbers; the rest to the last digits


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each model is."""
    root = tmp_path_factory.mktemp("models")
    return {name: model.publish(root, name.replace(" ", "-")) for name, model in foreign.ALL.items()}


@pytest.fixture(scope="module")
def runtimes(paths: dict[str, Path]) -> dict[str, OnnxRuntime]:
    """Each model, tried once."""
    loaded = {name: OnnxRuntime(path) for name, path in paths.items()}
    for runtime in loaded.values():
        probe(runtime, 8)
    return loaded


def chunk(signature: Signature, rng: np.random.Generator, count: int) -> list[Array]:
    """Random inputs, each `[T, *dims]`, of whole numbers."""
    return [
        rng.integers(0, 2 if spec.dtype == "bool" else 9, (count, *spec.dims)).astype(spec.np_dtype)
        for spec in signature.inputs
    ]


def submit(harness: Harness, session: Session, inputs: list[Array]) -> Step:
    """Send a chunk of several inputs."""
    step = Step(session, tuple(x.tobytes() for x in inputs), len(inputs[0]), Asker(harness.answered), harness.now)
    session.model.turns.submit(step, harness.now)
    return step


def constants(signature: Signature, rng: np.random.Generator) -> dict[str, Array]:
    """A session's own constants."""
    return {spec.name: rng.integers(1, 3, spec.dims).astype(spec.np_dtype) for spec in signature.own_constants}


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
@pytest.mark.parametrize("name", list(foreign.ALL))
def test_alone_is_together_is_in_chunks(
    name: str, seed: int, data: st.DataObject, paths: dict[str, Path], runtimes: dict[str, OnnxRuntime]
) -> None:
    rng, runtime = np.random.default_rng(seed), runtimes[name]
    signature = runtime.signature
    harness = Harness({"model": runtime}, Limits(max_batch_size=5, max_piece_steps=4))
    own = [constants(signature, rng) for _ in range(4)]
    sessions = [harness.open("model", initial_states=given) for given in own]
    sent: list[list[Step]] = [[] for _ in sessions]
    inputs: list[list[list[Array]]] = [[] for _ in sessions]
    for _ in range(data.draw(st.integers(2, 8))):
        who = data.draw(st.integers(0, len(sessions) - 1))
        count = data.draw(st.sampled_from([1, 1, 1, 2, 3, 7]))
        inputs[who].append(chunk(signature, rng, count))
        sent[who].append(submit(harness, sessions[who], inputs[who][-1]))
        if data.draw(st.booleans()):
            harness.run_batch()
        if data.draw(st.integers(0, 4)) == 0:  # a fork goes on like the other, constants and context with it
            harness.run()
            sessions[who] = harness.fork(sessions[who])
    harness.run()
    for steps, chunks, fixed in zip(sent, inputs, own, strict=True):
        whole = [np.concatenate(parts) for parts in zip(*chunks, strict=True)]
        expected = step_by_step(paths[name], list(map(list, zip(*whole, strict=True))), fixed)
        assert all(step.error is None for step in steps)
        for index, spec in enumerate(signature.outputs):
            answered = np.frombuffer(b"".join(step.outputs[index] for step in steps), spec.np_dtype)
            wanted = np.array([answer[index] for answer in expected], spec.np_dtype)
            tolerance = 0 if name in EXACT else 1e-6
            np.testing.assert_allclose(answered.reshape(wanted.shape), wanted, rtol=0, atol=tolerance)


def test_sessions_share_a_call_if_they_agree_in_what_it_has_once(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness({"model": runtimes["constants"]})
    speaker = np.zeros(2, np.float32)
    gains = [1, 2, 1, 2, 1]
    sessions = [
        harness.open("model", initial_states={"speaker": speaker, "gain": np.array(gain, np.float32)}) for gain in gains
    ]
    steps = [submit(harness, session, [np.ones((1, 2), np.float32)]) for session in sessions]
    assert [harness.run_batch(), harness.run_batch(), harness.run_batch()] == [3, 2, 0]
    assert [np.frombuffer(step.outputs[0], "<f4")[0] for step in steps] == [1000 + gain for gain in gains]


def test_a_session_without_its_own_constant_is_not_opened(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness({"model": runtimes["constants"]})
    with pytest.raises(InputNameError, match=r"constant 'speaker' must be given .* float32 \[2\]"):
        harness.open("model")
    assert harness.models[0].slots.in_use == 0


def test_a_reset_keeps_the_constants_and_forgets_the_context(
    paths: dict[str, Path], runtimes: dict[str, OnnxRuntime]
) -> None:
    for name in ("constants", "context in time", "context in step"):
        harness, rng = Harness({"model": runtimes[name]}), np.random.default_rng(1)
        signature = runtimes[name].signature
        given = constants(signature, rng)
        session = harness.open("model", initial_states=given)
        submit(harness, session, chunk(signature, rng, 3))
        harness.run()
        harness.engine.reset(session, harness.now)
        inputs = chunk(signature, rng, 1)
        step = submit(harness, session, inputs)
        harness.run()
        (expected,) = step_by_step(paths[name], [[x[0] for x in inputs]], given)
        assert step.outputs[0] == expected[0].tobytes()


def test_rows_that_depend_on_one_another_are_run_one_by_one(runtimes: dict[str, OnnxRuntime]) -> None:
    harness = Harness({"model": runtimes["quantised"]})
    sessions = [harness.open("model") for _ in range(3)]
    for session in sessions:
        submit(harness, session, [np.ones((1, 4), np.float32)])
    assert [harness.run_batch() for _ in range(4)] == [1, 1, 1, 0]
