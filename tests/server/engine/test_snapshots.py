"""A session as bytes goes on elsewhere as if nothing had happened; bytes that are not one change nothing."""

import struct
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recurra_server.engine import snapshots
from recurra_server.engine.errors import (
    EngineError,
    ModelNotFoundError,
    SessionExistsError,
    SessionNotFoundError,
    SnapshotInvalidError,
    SnapshotMismatchError,
)
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import KeptReply, Session
from recurra_server.engine.snapshots import Snapshot
from recurra_server.engine.standing import Standing
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.server.engine.test_promises import TOLERANCE, sequence
from tests.support.attacks import Attack
from tests.support.harness import Harness, outputs_of, rows_of, whole

Runtimes = dict[str, OnnxRuntime]
ONE = np.ones((1, 1))


@settings(max_examples=60)
@given(
    model=st.sampled_from(["counter", "lstm", "gru", "rnn"]),
    numbered=st.lists(st.booleans(), max_size=5),
    after=st.integers(1, 5),
    as_block=st.booleans(),
)
def test_a_sequence_goes_on_in_another_server(
    runtimes: Runtimes, model: str, numbered: list[bool], after: int, as_block: bool
) -> None:
    """Whichever of its steps were numbered."""
    before = len(numbered)
    x = sequence(model, 0, before + after)
    here, there = Harness(runtimes), Harness(runtimes)
    session = here.open(model)
    answers = []
    for i, has_number in enumerate(numbered):
        if as_block:
            block = here.submit_block([session], x[None, i : i + 1], numbered=has_number)
            here.run()
            answers.append(rows_of(block)[0])
        else:
            answers.append(here.ask(session, x[i : i + 1], number=(i + 1) * has_number))
    moved = there.restore(snapshots.take(session, 0.0), session_id="moved")
    assert moved.applied == before
    assert moved.id == "moved"
    if numbered and numbered[-1]:
        again = there.submit(moved, x[before - 1 : before], number=before)
        assert again.replayed
        np.testing.assert_array_equal(outputs_of(again), answers[-1])
    answers.append(there.ask(moved, x[before:]))
    np.testing.assert_allclose(np.concatenate(answers), whole(runtimes[model], x), atol=TOLERANCE, rtol=0)


def test_a_reply_of_many_outputs_is_kept(runtimes: Runtimes) -> None:
    """As many as the model has."""
    harness, signature = Harness(runtimes), runtimes["counter"].signature
    outputs = tuple(replace(signature.outputs[0], name=f"y{number}") for number in range(1000))
    many = ServedModel(
        "many", "1", "sha256:many", replace(signature, outputs=outputs), runtimes["counter"], harness.engine.limits
    )
    kept = KeptReply(7, 1, (bytes(4),) * 1000, tuple(spec.name for spec in outputs))
    values = {spec.name: np.ones(spec.dims, spec.np_dtype) for spec in many.slots.specs}
    data = Snapshot.of(Standing(many, values, 7, kept)).encode()
    assert Snapshot.decode(data).standing(many).last_reply == kept


@pytest.mark.parametrize("part", ["outputs", "names"])
def test_no_more_outputs_are_read_than_the_model_has(runtimes: Runtimes, part: str, attack: Attack) -> None:
    """Four bytes each: a snapshot could say millions, and everybody would wait while they are read."""
    victim = Victim(runtimes, "counter")
    snapshot = Snapshot.decode(victim.data)
    millions = struct.pack("<I", 2**20) + bytes(4 << 20)
    before = b"" if part == "outputs" else struct.pack("<II4s", 1, 4, b"")
    forged = replace(snapshot, reply=struct.pack("<BQI", 1, 2, 1) + before + millions)
    with pytest.raises(SnapshotInvalidError, match="a reply of 1048576 outputs, and its model has 1"):
        victim.harness.restore(forged.encode())
    assert not victim.suffer(forged.encode())
    attack("gRPC port", "a snapshot that keeps a reply of a million outputs", "refused before any is read")


def test_one_of_an_older_version_is_refused_by_name(runtimes: Runtimes) -> None:
    data = Victim(runtimes, "counter").data
    with pytest.raises(SnapshotInvalidError, match="older version, in format RCS1"):
        Snapshot.decode(b"RCS1" + data[4:])


def test_it_is_small(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("lstm")
    harness.ask(session, sequence("lstm", 0, 1), number=1)
    state = session.model.signature.state_bytes
    assert len(snapshots.take(session, 0.0)) <= 1.1 * state + 256


def test_a_session_goes_back_to_where_it_was(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter")
    harness.ask(session, np.full((3, 1), 5.0), number=1)
    then = snapshots.take(session, 0.0)
    tried = [harness.ask(session, np.full((1, 1), value)).item() for value in (100.0, 1000.0)]
    assert tried == [115.0, 1115.0]
    snapshots.rewind(session, then, 0.0)
    assert session.applied == 3
    assert harness.ask(session, ONE, number=4).item() == 16.0
    assert harness.submit(session, np.full((3, 1), 5.0), number=1).error is not None, "that reply is not kept any more"


def test_taking_and_rewinding_count_as_use(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter", session_id="a", idle_timeout=10.0)
    data = snapshots.take(session, 9.0)
    assert harness.engine.session("a", 18.0) is session
    snapshots.rewind(session, data, 18.0)
    assert harness.engine.session("a", 27.0) is session


def test_it_fits_only_its_own_model(runtimes: Runtimes, attack: Attack) -> None:
    harness = Harness(runtimes)
    session = harness.open("lstm")
    data = snapshots.take(session, 0.0)
    with pytest.raises(SnapshotMismatchError, match="serve the model that it was taken of"):
        snapshots.rewind(harness.open("gru"), data, 0.0)
    with pytest.raises(ModelNotFoundError):
        Harness({"counter": runtimes["counter"]}).restore(data)
    other = Harness({"lstm": runtimes["gru"]})
    other.engine.model("lstm").digest = "sha256:other"
    with pytest.raises(SnapshotMismatchError, match="sha256:lstm"):
        other.restore(data)
    other.engine.model("lstm").digest = session.model.digest  # states laid out in another way
    with pytest.raises(SnapshotMismatchError):
        other.restore(data)
    assert other.engine.model("lstm").slots.in_use == 0
    attack("gRPC port", "a snapshot of one model for another", "FAILED_PRECONDITION SNAPSHOT_MISMATCH")


def test_what_ends_or_exists_is_told(runtimes: Runtimes) -> None:
    harness = Harness(runtimes)
    session = harness.open("counter", session_id="a")
    data = snapshots.take(session, 0.0)
    with pytest.raises(SessionExistsError):
        harness.restore(data, session_id="a")
    harness.engine.close(session)
    for what in (lambda: snapshots.take(session, 0.0), lambda: snapshots.rewind(session, data, 0.0)):
        with pytest.raises(SessionNotFoundError):
            what()


class Victim:
    """A server whose session must never feel a bad snapshot."""

    def __init__(self, runtimes: Runtimes, model: str) -> None:
        self.harness = Harness(runtimes)
        self.session = self.harness.open(model)
        self.harness.ask(self.session, sequence(model, 0, 2), number=1)
        self.data = snapshots.take(self.session, 0.0)
        self.before = self.harness.engine.model(model).slots.read(self.session.slot)

    def suffer(self, data: bytes) -> bool:
        """Import and rewind to bytes; tell whether they were taken."""
        model, taken = self.session.model, False
        for attempt in (
            lambda: self.harness.restore(data),
            lambda: snapshots.rewind(self.session, data, 0.0),
        ):
            try:
                made = attempt()
            except EngineError:
                continue
            taken = True
            if isinstance(made, Session):
                assert self.harness.ask(made, sequence(model.name, 1, 1)).shape[0] == 1, "it can be stepped"
                self.harness.engine.close(made)
        if taken:
            snapshots.rewind(self.session, self.data, 0.0)
        held = model.slots.read(self.session.slot)
        assert all(np.array_equal(held[name], self.before[name]) for name in held)
        assert model.slots.in_use == 1
        return taken


@pytest.mark.parametrize("model", ["counter", "lstm"])
def test_a_hundred_thousand_damaged_snapshots_are_refused(runtimes: Runtimes, model: str) -> None:
    """Bytes changed, cut, repeated and inserted at random: the checksum finds all of them."""
    rng = np.random.default_rng(0)
    data = snapshots.take(Victim(runtimes, model).session, 0.0)
    for _ in range(50_000):
        with pytest.raises(SnapshotInvalidError):
            Snapshot.decode(_damaged(data, rng))


@settings(max_examples=1500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_forged_snapshots_are_refused_or_harmless(victims: dict[str, Victim], seed: int, attack: Attack) -> None:
    """Damaged, and given a good checksum again: as somebody would who means harm."""
    rng = np.random.default_rng(seed)
    victim = victims[str(rng.choice(list(victims)))]
    body = _damaged(victim.data[:-4], rng)
    victim.suffer(body + struct.pack("<I", zlib.crc32(body)))
    attack(
        "gRPC port",
        "snapshots that were damaged and given a good checksum again",
        "refused, or taken as what they say; nothing else changes",
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400))
def test_any_bytes_are_refused(victims: dict[str, Victim], data: bytes, attack: Attack) -> None:
    for forged in (data, b"RCS2" + data + struct.pack("<I", zlib.crc32(b"RCS2" + data))):
        assert not victims["counter"].suffer(forged)
    attack("gRPC port", "snapshots of any bytes", "refused; nothing else changes")


@pytest.fixture(scope="module")
def victims(runtimes: Runtimes) -> dict[str, Victim]:
    return {model: Victim(runtimes, model) for model in ("counter", "lstm", "gru")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.array([np.nan], "<f4").tobytes()}, "NaN or infinity"),
        ({"values": b"\0" * 8}, "another length"),
        ({"applied": 9}, "not that of its last step"),
        ({"reply": struct.pack("<BQIII9sI", 1, 1, 2, 1, 9, b"", 0)}, "not that of its last step"),
        ({"reply": b"\0\0"}, "1 bytes too many"),
        ({"reply": b""}, "1 bytes too early"),
    ],
)
def test_what_no_session_can_hold_is_refused(
    runtimes: Runtimes, change: dict[str, Any], message: str, attack: Attack
) -> None:
    victim = Victim(runtimes, "counter")
    forged = replace(Snapshot.decode(victim.data), **change).encode()
    with pytest.raises(SnapshotInvalidError, match=message):
        victim.harness.restore(forged)
    assert not victim.suffer(forged)
    attack(
        "gRPC port",
        "a snapshot with NaN, of another length, of a step that was not",
        "INVALID_ARGUMENT SNAPSHOT_INVALID",
    )


def _damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bytes that differ from these."""
    damaged = bytearray(data)
    while bytes(damaged) == data:
        at = int(rng.integers(len(damaged)))
        match rng.integers(4):
            case 0:
                damaged[at] = int(rng.integers(256))
            case 1:
                del damaged[at : at + int(rng.integers(1, 9))]
            case 2:
                damaged[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case _:
                damaged[at : at + 8] = rng.choice([0, 1, 2**31, 2**63, 2**64 - 1]).tobytes()[:8]
    return bytes(damaged)
