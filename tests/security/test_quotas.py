"""What each caller may have at most, and has to pay for."""

import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from recurra.v1.inference_pb2 import GenerateRequest, ModelVersion, PredictRequest, StepBatchRequest, StepRequest
from recurra.v1.sessions_pb2 import (
    DURABILITY_ASYNC,
    DURABILITY_EPHEMERAL,
    DURABILITY_SYNC,
    CloseSessionRequest,
    OpenSessionRequest,
)
from recurra_server.checkpoints import Checkpoints
from recurra_server.driver import Driver
from recurra_server.engine.accounts import Account, Accounts, Quota
from recurra_server.engine.errors import CapacityError, StepNotHeldError
from recurra_server.engine.limits import Limits
from recurra_server.rpc.sessions import open_session
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.telemetry.metrics import EdgeCounts, ServerMetrics

from tests.security.conftest import failure, reason_of, refused
from tests.support.attacks import Attack
from tests.support.authority import TOKENS, Authority, Issuer, write_access_file
from tests.support.harness import Harness
from tests.support.memory_store import MemoryStore
from tests.support.openinference import request
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, error_info, tensor


def test_steps_per_second_are_kept_over_a_second() -> None:
    account = Account("a", Quota(steps_per_second=10))
    assert [account.charge(1, 100.0) for _ in range(10)] == [0.0] * 10  # a second's worth at once
    assert account.charge(5, 100.0) == pytest.approx(0.5)
    with pytest.raises(CapacityError) as refusal:
        account.spend(1, 100.0)
    assert refusal.value.retry_after == pytest.approx(0.5)
    account.spend(1, 100.51)
    with pytest.raises(CapacityError) as refusal:
        account.spend(601, 200.0)
    assert refusal.value.retry_after is None, "it would never be taken"
    account.spend(600, 200.0)


def test_a_call_whose_steps_are_spent_in_parts_pays_for_each_once() -> None:
    account = Account("a", Quota(steps_per_second=10))
    account.spend(20, 100.0)
    account.spend(60, 100.0, paid=20)
    assert account.debt(100.0) == pytest.approx(5.0), "60 steps, of which 10 were free"
    with pytest.raises(CapacityError):
        account.spend(601, 200.0, paid=20)


def test_what_is_over_ones_own_bounds_costs_no_error_budget(runtimes: dict[str, OnnxRuntime]) -> None:
    limits = Limits(max_sessions=4, max_queue=8, max_queue_per_session=2)
    harness, edge, step = Harness({"counter": runtimes["counter"]}, limits), EdgeCounts(), np.ones((1, 1), np.float32)
    poor, busy = Account("poor", Quota(sessions=0, state_bytes=0, steps_per_second=1)), Account("busy")
    session = harness.open("counter", caller=busy)

    def refused(bound: str, ask: Callable[[], object]) -> None:
        with pytest.raises(CapacityError) as caught:
            [ask() for _ in range(10)]
        assert caught.value.metadata["bound"] == bound
        edge.count_error(caught.value)

    refused("identity_sessions", lambda: harness.open("counter", caller=poor))
    refused("identity_state_bytes", lambda: poor.check_memory(1))
    refused("identity_steps_per_second", lambda: poor.spend(1, 0.0))
    refused("max_queue_per_session", lambda: harness.submit(session, step))
    refused("fair_share", lambda: harness.submit(harness.open("counter", caller=busy), step))
    assert edge.errors == {("capacity", "other"): 5}
    refused("max_sessions", lambda: harness.open("counter", caller=Account("another")))
    assert edge.errors == {("capacity", "other"): 5, ("capacity", "server"): 1}


@pytest.mark.parametrize("together", [False, True], ids=["step by step", "in a block"])
def test_replies_that_are_kept_for_retries_count_as_what_sessions_remember(
    runtimes: dict[str, OnnxRuntime], together: bool, attack: Attack
) -> None:
    harness = Harness({"counter": runtimes["counter"]}, Limits(max_piece_steps=512))
    owner = harness.engine.accounts.of("a", Quota(state_bytes=3000))  # a session has 4, a reply to 512 steps 2,048
    sessions = [harness.open("counter", caller=owner) for _ in range(2)]
    rows = np.ones((2, 512, 1), np.float32)
    if together:
        harness.submit_block(sessions, rows, numbered=True)
    else:
        for session, row in zip(sessions, rows, strict=True):
            harness.submit(session, row, number=1)
    harness.run()
    assert owner.state_bytes == 2 * 4 + 2048, "there was room for one of them"
    with pytest.raises(CapacityError, match="remember 2,056 bytes"):
        owner.check_room(1000)

    assert harness.ask(sessions[0], rows[0], number=1)[-1] == 512, "answered again"
    with pytest.raises(StepNotHeldError):
        harness.ask(sessions[1], rows[1], number=1)
    assert [session.applied for session in sessions] == [512, 512], "and counted once, both"

    harness.engine.close(sessions[0])
    assert owner.state_bytes == 4
    for repeat in range(2):
        assert harness.ask(sessions[1], rows[1], number=513)[-1] == 1024, f"there is room now ({repeat})"
    owner.quota = Quota(state_bytes=1)
    for repeat in range(2):
        assert harness.ask(sessions[1], rows[1, :1], number=1025)[-1] == 1025, f"a small one always has ({repeat})"
    assert owner.state_bytes == 4
    attack("gRPC port", "large replies, to have them kept beyond state_mb", "not kept; retries are told STEP_NOT_HELD")


def test_who_ran_steps_is_not_forgotten_before_they_are_paid_for(attack: Attack) -> None:
    accounts, quota = Accounts(), Quota(steps_per_second=10)
    accounts.of("a", quota).charge(15, 100.0)  # a second's worth at once, and half a second ahead of that
    known = weakref.ref(accounts.of("a", quota))
    accounts.forget_even(101.4)
    with pytest.raises(CapacityError):
        accounts.of("a", quota).spend(1, 100.4)
    assert known() is not None
    accounts.forget_even(101.5)
    assert known() is None
    attack("gRPC port", "running steps and coming back as if new", "still to be paid for")


# --- against a server -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def bounded(
    repository: Path, tmp_path_factory: pytest.TempPathFactory, issuer: Issuer, authority: Authority
) -> Iterator[ServerProcess]:
    """A server where everybody has bounds, and a certificate."""
    path = tmp_path_factory.mktemp("a") / "access.yaml"
    limits = {"sessions": 3, "state_mb": 12 / 2**20, "steps_per_second": 50}
    write_access_file(path, issuer, limits=limits)
    flags = (*authority.flags(), "--tls-client-ca", str(authority.ca), "--access", str(path), "--no-metrics")
    with running_server(repository, *flags, ready="who may") as server:
        yield server


@pytest.fixture
def alice(bounded: ServerProcess, authority: Authority) -> Iterator[Stubs]:
    stubs = Stubs(bounded.target, authority.client("stranger").credentials(), token=TOKENS["alice"])
    yield stubs
    stubs.channel.close()


@pytest.fixture
def bob(bounded: ServerProcess, authority: Authority) -> Iterator[Stubs]:
    stubs = Stubs(bounded.target, authority.client("stranger").credentials(), token=TOKENS["bob"])
    yield stubs
    stubs.channel.close()


@pytest.fixture
def gateway(bounded: ServerProcess, authority: Authority) -> Iterator[Stubs]:
    """Is known by its certificate alone."""
    stubs = Stubs(bounded.target, authority.client("gateway").credentials())
    yield stubs
    stubs.channel.close()


def opened(stubs: Stubs, model: str = "counter") -> str:
    return stubs.sessions.OpenSession(OpenSessionRequest(model=model)).session.session_id


def spend_all(way: Callable[[], object]) -> None:
    """Make a call until its steps are more than one may have."""
    error = failure(lambda: [way() for _ in range(20)])
    assert reason_of(error) == "RESOURCE_EXHAUSTED CAPACITY"
    assert bound_of(error) == "identity_steps_per_second"


def bound_of(error: object) -> str:
    assert isinstance(error, grpc.RpcError)
    return str(error_info(error).metadata["bound"])


def test_sessions_are_bounded_for_each_and_all_their_ways_in(alice: Stubs, bob: Stubs, attack: Attack) -> None:
    ids = [opened(alice) for _ in range(3)]
    ways = (
        lambda: opened(alice),
        lambda: alice.open_inference.ModelInfer(request([[1.0]], sequence=1, start=True)),
        lambda: alice.inference.Predict(PredictRequest(model="counter", inputs=[tensor([[1.0]])])),
        lambda: alice.inference.Generate(
            GenerateRequest(model=ModelVersion(name="echo"), inputs=[tensor([1.0])], max_steps=1)
        ),
    )
    for way in ways:
        error = failure(way)
        assert reason_of(error) == "RESOURCE_EXHAUSTED CAPACITY"
        assert bound_of(error) == "identity_sessions"
    bob.sessions.CloseSession(CloseSessionRequest(session_id=opened(bob)))  # others are not touched
    for session_id in ids:
        alice.sessions.CloseSession(CloseSessionRequest(session_id=session_id))
    alice.sessions.CloseSession(CloseSessionRequest(session_id=opened(alice)))
    attack("gRPC port", "more sessions than one's own bound", "RESOURCE_EXHAUSTED CAPACITY; others open theirs")


def test_steps_are_bounded_for_each(alice: Stubs, bob: Stubs, attack: Attack) -> None:
    session_id, others, chunk = opened(alice), opened(bob), np.ones((64, 1))  # more than a second's worth
    ways = (
        lambda: alice.inference.Step(StepRequest(session_id=session_id, inputs=[tensor(chunk)])),
        lambda: alice.inference.StepBatch(StepBatchRequest(session_ids=[session_id], inputs=[tensor([chunk])])),
        lambda: alice.inference.Predict(PredictRequest(model="counter", inputs=[tensor(chunk)])),
        lambda: alice.open_inference.ModelInfer(request(chunk)),
    )
    for way in ways:
        spend_all(way)
    bob.inference.Step(StepRequest(session_id=others, inputs=[tensor([1.0])]))
    for stubs, each in ((alice, session_id), (bob, others)):
        stubs.sessions.CloseSession(CloseSessionRequest(session_id=each))
    attack(
        "gRPC port",
        "more steps a second than one's own bound, by calls",
        "RESOURCE_EXHAUSTED CAPACITY, and when to return",
    )


def test_steps_are_bounded_of_who_has_a_certificate_and_keeps_no_session(gateway: Stubs, attack: Attack) -> None:
    chunk = np.ones((64, 1))
    ways = (
        lambda: gateway.inference.Predict(PredictRequest(model="counter", inputs=[tensor(chunk)])),
        lambda: gateway.open_inference.ModelInfer(request(chunk)),
    )
    for way in ways:
        spend_all(way)
    attack(
        "gRPC port",
        "more steps a second than one's own bound, with a certificate and no session",
        "RESOURCE_EXHAUSTED CAPACITY, and when to return",
    )


def test_rows_without_a_session_are_paid_for_as_well(
    bounded: ServerProcess, authority: Authority, issuer: Issuer, attack: Attack
) -> None:
    stubs = Stubs(bounded.target, authority.client("stranger").credentials(), token=issuer.token("ivy"))
    ids, rows = [opened(stubs), *(f"absent-{row}" for row in range(59))], [tensor(np.ones((60, 49, 1)))]
    stubs.inference.StepBatch(StepBatchRequest(session_ids=ids, inputs=rows))
    error = failure(lambda: stubs.inference.Step(StepRequest(session_id=ids[0], inputs=[tensor([1.0])])))
    assert bound_of(error) == "identity_steps_per_second"
    stubs.channel.close()
    attack("gRPC port", "steps for sessions that are not there, to have them for nothing", "paid for as others are")


def test_rows_of_which_none_has_a_session_are_paid_for_as_well(
    bounded: ServerProcess, authority: Authority, issuer: Issuer, attack: Attack
) -> None:
    stubs = Stubs(bounded.target, authority.client("stranger").credentials(), token=issuer.token("ida"))
    rows = StepBatchRequest(session_ids=["absent"] * 2500, inputs=[tensor(np.ones((2500, 1)))])
    with stubs.channel:
        assert {row.error.reason for row in stubs.inference.StepBatch(rows).errors} == {"SESSION_NOT_FOUND"}
        assert bound_of(failure(lambda: stubs.inference.StepBatch(rows))) == "identity_steps_per_second"
    attack(
        "gRPC port", "rows of which none has a session, to have them looked for for nothing", "paid for as steps are"
    )


def test_chunks_are_paid_for_once(bounded: ServerProcess, authority: Authority, issuer: Issuer) -> None:
    stubs = Stubs(bounded.target, authority.client("stranger").credentials(), token=issuer.token("iris"))
    with stubs.channel:
        session_id = opened(stubs)

        def batch(steps: int) -> object:
            rows = [tensor(np.ones((1, steps, 1)))]
            return stubs.inference.StepBatch(StepBatchRequest(session_ids=[session_id], inputs=rows))

        batch(50)  # a second's worth at once
        batch(1000)  # so there is no debt yet
        assert bound_of(failure(lambda: batch(1))) == "identity_steps_per_second"


def test_a_stream_is_slowed_down_not_refused(bob: Stubs, attack: Attack) -> None:
    stream = Stream(bob)
    session_id = stream.ask(open=OpenSessionRequest(model="counter")).opened.session_id
    began = time.monotonic()
    for _ in range(110):
        stream.send(session_id=session_id, inputs=[tensor([1.0])])
    answers = stream.end()
    assert time.monotonic() - began > 1.1, "50 at once, and 50 a second"
    assert [answer.result.step for answer in answers] == list(range(1, 111))
    bob.sessions.CloseSession(CloseSessionRequest(session_id=session_id))
    attack("gRPC port", "more steps a second than one's own bound, on a stream", "it is read more slowly")


def test_a_new_stream_for_each_message_is_slowed_down_as_well(
    bounded: ServerProcess, authority: Authority, attack: Attack
) -> None:
    stubs = Stubs(bounded.target, authority.client("stranger").credentials(), token=TOKENS["olga"])
    session_id, began = opened(stubs), time.monotonic()
    for _ in range(2):
        stream = Stream(stubs)
        stream.ask(session_id=session_id, inputs=[tensor(np.ones((55, 1)))])
        stream.call.cancel()
    at_once = [Stream(stubs) for _ in range(3)]
    for stream in at_once:
        stream.send(session_id=session_id, inputs=[tensor(np.ones((25, 1)))])
    for stream in at_once:
        stream.read()
        stream.call.cancel()
    assert time.monotonic() - began > 2.1, "50 steps at once, and 50 a second; the last 25 are not paid yet"
    stubs.channel.close()
    attack(
        "gRPC port",
        "more steps a second than one's own bound, each on a stream of its own",
        "they are read more slowly",
    )


def test_state_is_bounded(
    bounded: ServerProcess, tmp_path: Path, issuer: Issuer, repository: Path, attack: Attack
) -> None:
    write_access_file(tmp_path / "access.yaml", issuer, limits={"state_mb": 8 / 2**20})
    with running_server(
        repository, "--access", str(tmp_path / "access.yaml"), "--no-metrics", ready="who may"
    ) as server:
        stubs = Stubs(server.target, token=TOKENS["alice"])
        with stubs.channel:
            opened(stubs)
            opened(stubs)
            error = failure(lambda: opened(stubs))
            assert bound_of(error) == "identity_state_bytes"
            assert refused(lambda: opened(stubs)) == "RESOURCE_EXHAUSTED CAPACITY"
    attack("gRPC port", "more state than one's own bound (state_mb)", "RESOURCE_EXHAUSTED CAPACITY")


@pytest.mark.parametrize("durability", [DURABILITY_EPHEMERAL, DURABILITY_ASYNC, DURABILITY_SYNC])
async def test_who_reads_the_metrics_sees_who_is_at_a_bound(runtimes: dict[str, OnnxRuntime], durability: Any) -> None:
    engine = Harness({"counter": runtimes["counter"]}, Limits(max_sessions=2)).engine
    driver = Driver(engine)
    driver.checkpoints = Checkpoints(engine, MemoryStore(), interval=1.0, clock=driver.clock)
    small = engine.accounts.of("small", Quota(sessions=1, state_bytes=4))
    opening = OpenSessionRequest(model="counter", durability=durability)
    await open_session(driver, opening, small)
    for small.quota in (Quota(sessions=1), Quota(state_bytes=4)):
        with pytest.raises(CapacityError):
            await open_session(driver, opening, small)
    await open_session(driver, opening, None)
    with pytest.raises(CapacityError):
        await open_session(driver, opening, None)
    told = {
        sample.labels["bound"]: sample.value
        for family in ServerMetrics(engine, EdgeCounts(), {}).collect()
        for sample in family.samples
        if sample.name == "recurra_sessions_refused_total"
    }
    assert told == {"max_sessions": 1, "latency": 0, "identity_sessions": 1, "identity_state_bytes": 1}
