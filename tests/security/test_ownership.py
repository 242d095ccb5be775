"""A session is its owner's: for everybody else it is not there, in every call of both APIs."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from recurra.v1 import inference_pb2 as inf
from recurra.v1 import sessions_pb2 as ses

from tests.security.conftest import Caller, failure, reason_of, refused
from tests.support.attacks import Attack
from tests.support.authority import TOKENS, Issuer, write_access_file
from tests.support.openinference import request, values
from tests.support.server import running_server
from tests.support.wire import Stream, Stubs, array_of, tensor

Call = Callable[[Stubs, str], Any]
X = [tensor([1.0])]

# Every call that takes the id of a session.
BY_ID: dict[str, Call] = {
    "SessionsService/GetSession": lambda s, i: s.sessions.GetSession(ses.GetSessionRequest(session_id=i)),
    "SessionsService/ResetSession": lambda s, i: s.sessions.ResetSession(ses.ResetSessionRequest(session_id=i)),
    "SessionsService/CloseSession": lambda s, i: s.sessions.CloseSession(ses.CloseSessionRequest(session_id=i)),
    "SessionsService/ForkSession": lambda s, i: s.sessions.ForkSession(ses.ForkSessionRequest(session_id=i)),
    "SessionsService/ExportSession": lambda s, i: s.sessions.ExportSession(ses.ExportSessionRequest(session_id=i)),
    "SessionsService/RewindSession": lambda s, i: s.sessions.RewindSession(ses.RewindSessionRequest(session_id=i)),
    "InferenceService/Step": lambda s, i: s.inference.Step(inf.StepRequest(session_id=i, inputs=X)),
    "InferenceService/Generate": lambda s, i: next(
        s.inference.Generate(inf.GenerateRequest(session_id=i, inputs=X, max_steps=1))
    ),
}
# Every call that does not; those that can say something of a session are tested one by one below.
OTHERS = {
    "SessionsService/OpenSession",
    "SessionsService/ListSessions",
    "SessionsService/ImportSession",
    "SessionsService/DrainSessions",
    "InferenceService/StreamSteps",
    "InferenceService/StepBatch",
    "InferenceService/Predict",
}


def test_every_call_is_tested() -> None:
    found = {
        f"{service}/{method.name}"
        for service in ("SessionsService", "InferenceService")
        for method in descriptor_pool.Default().FindServiceByName(f"recurra.v1.{service}").methods
    }
    assert found == set(BY_ID) | OTHERS


def opened(stubs: Stubs, model: str = "counter", **fields: Any) -> str:
    """Open a session and step it to 5."""
    session_id = stubs.sessions.OpenSession(ses.OpenSessionRequest(model=model, **fields)).session.session_id
    stubs.inference.Step(inf.StepRequest(session_id=session_id, inputs=[tensor([5.0])]))
    return session_id


def step(stubs: Stubs, session_id: str, x: float = 1.0) -> float:
    answer = stubs.inference.Step(inf.StepRequest(session_id=session_id, inputs=[tensor([x])]))
    return float(array_of(answer.result.outputs[0])[0])


def said(call: Callable[[], Any], session_id: str) -> tuple[str, str]:
    """How a call fails: status and reason, and the text without the id."""
    error = failure(call)
    return reason_of(error), error.details().replace(session_id, "…")


@pytest.mark.parametrize("method", BY_ID)
def test_the_session_of_another_is_not_there(caller: Caller, method: str, attack: Attack) -> None:
    # olga, who may do everything, is nobody special where sessions are concerned.
    alice, olga, absent, call = caller("alice"), caller("olga"), "a" * 22, BY_ID[method]
    for model in ("counter", "echo"):
        session_id = opened(alice, model)
        answer = said(lambda: call(olga, session_id), session_id)  # noqa: B023
        assert answer == said(lambda: call(olga, absent), absent)
        assert answer[0] == "NOT_FOUND SESSION_NOT_FOUND"
        assert alice.sessions.GetSession(ses.GetSessionRequest(session_id=session_id)).session.steps == 1
        alice.sessions.CloseSession(ses.CloseSessionRequest(session_id=session_id))
    attack("gRPC port", f"{method.partition('/')[2]} on the session of another", "NOT_FOUND, as if it did not exist")


def test_others_are_not_listed_or_counted(caller: Caller, attack: Attack) -> None:
    alice, bob = caller("alice"), caller("bob")
    before = bob.sessions.ListSessions(ses.ListSessionsRequest()).total
    session_id = opened(alice)
    for model in ("", "counter"):
        listed = bob.sessions.ListSessions(ses.ListSessionsRequest(model=model))
        assert listed.total == before
        assert session_id not in {session.session_id for session in listed.sessions}
        assert session_id in {
            session.session_id for session in alice.sessions.ListSessions(ses.ListSessionsRequest(model=model)).sessions
        }
    attack("gRPC port", "ListSessions, to see those of others", "one's own, and their number")


def test_an_id_in_use_by_another_is_free(caller: Caller, attack: Attack) -> None:
    alice, bob = caller("alice"), caller("bob")
    session_id = opened(alice, session_id="chosen")
    assert opened(bob, session_id="chosen") == session_id
    assert step(alice, "chosen") == 6.0
    assert step(bob, "chosen", 2.0) == 7.0
    for stubs in (alice, bob):
        stubs.sessions.CloseSession(ses.CloseSessionRequest(session_id="chosen"))
    attack("gRPC port", "opening a session with the id of another's, to learn of it", "a session of one's own")


def test_an_expired_session_is_not_remembered_for_another(caller: Caller, attack: Attack) -> None:
    alice, bob, request_ = caller("alice"), caller("bob"), ses.OpenSessionRequest(model="counter")
    request_.idle_timeout.FromMilliseconds(1)
    session_id = alice.sessions.OpenSession(request_).session.session_id
    get = ses.GetSessionRequest(session_id=session_id)
    with contextlib.suppress(grpc.RpcError):
        while True:
            alice.sessions.GetSession(get)
    assert refused(lambda: alice.sessions.GetSession(get)) == "NOT_FOUND SESSION_EXPIRED"
    assert refused(lambda: bob.sessions.GetSession(get)) == "NOT_FOUND SESSION_NOT_FOUND"
    attack("gRPC port", "asking whether another's session has expired", "NOT_FOUND, as if it had not existed")


def test_streams_see_only_their_callers_sessions(caller: Caller, attack: Attack) -> None:
    alice, bob = caller("alice"), caller("bob")
    session_id = opened(alice)
    stream = Stream(bob)
    for message in ({"inputs": X}, {"close": True}, {"inputs": X, "step": 2}):
        answer = stream.ask(session_id=session_id, **message)
        assert answer.error.reason == "SESSION_NOT_FOUND"
        assert answer.session_id == session_id
    stream.end()
    assert step(alice, session_id) == 6.0
    attack("gRPC port", "StreamSteps on the session of another", "NOT_FOUND, as if it did not exist")


def test_batches_see_only_their_callers_sessions(caller: Caller, attack: Attack) -> None:
    alice, bob = caller("alice"), caller("bob")
    theirs, own = opened(alice), opened(bob)
    answer = bob.inference.StepBatch(
        inf.StepBatchRequest(session_ids=[theirs, own, "absent"], inputs=[tensor([[1.0], [1.0], [1.0]])])
    )
    assert {row.row: row.error.reason for row in answer.errors} == {0: "SESSION_NOT_FOUND", 2: "SESSION_NOT_FOUND"}
    assert list(answer.steps) == [0, 2, 0]
    assert step(alice, theirs) == 6.0
    attack("gRPC port", "StepBatch with the sessions of others among the rows", "NOT_FOUND for those rows")


def test_a_sequence_of_the_other_api_is_its_callers(caller: Caller, attack: Attack) -> None:
    alice, bob = caller("alice"), caller("bob")

    def infer(stubs: Stubs, x: float, **flags: Any) -> float:
        return float(values(stubs.open_inference.ModelInfer(request([[x]], sequence=7, **flags))).item())

    assert infer(alice, 5.0, start=True) == 5.0
    assert refused(lambda: infer(bob, 1.0)) == "NOT_FOUND SESSION_NOT_FOUND"
    stream = bob.open_inference.ModelStreamInfer(iter([request([[1.0]], sequence=7)]))
    assert "SESSION_NOT_FOUND" in next(stream).error_message
    assert infer(bob, 100.0, start=True) == 100.0  # one of their own: it does not end alice's
    assert infer(alice, 1.0) == 6.0
    assert infer(bob, 1.0, end=True) == 101.0
    assert infer(alice, 1.0, end=True) == 7.0
    assert refused(lambda: step(bob, "counter:7")) == "NOT_FOUND SESSION_NOT_FOUND"
    attack(
        "gRPC port", "a step of another's sequence of the Open Inference Protocol", "NOT_FOUND, as if it did not exist"
    )
    attack("gRPC port", "beginning such a sequence with the id of another's", "a sequence of one's own")


def test_identities_of_different_kinds_never_meet(caller: Caller, issuer: Issuer, attack: Attack) -> None:
    session_id = opened(caller("alice"))
    for subject in ("alice", "token:alice"):
        ann = caller(issuer.token(subject))
        assert refused(lambda: step(ann, session_id)) == "NOT_FOUND SESSION_NOT_FOUND"  # noqa: B023
    attack(
        "gRPC port", "a JWT whose subject is the name of another's token", "another identity: it sees nothing of theirs"
    )


# --- with a store ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replicas(repository: Path, tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[list[Any]]:
    """Two servers with one store and one access file."""
    folder = tmp_path_factory.mktemp("r")
    write_access_file(folder / "access.yaml", issuer)
    flags = ("--access", str(folder / "access.yaml"), "--store", f"embedded:{folder}/s", "--no-metrics")
    with (
        running_server(repository, *flags, ready="who may") as one,
        running_server(repository, *flags, ready="who may") as two,
    ):
        yield [one, two]


def test_only_its_owner_takes_a_session_over(replicas: list[Any], attack: Attack) -> None:
    one, two = replicas
    alice_here, alice_there = (Stubs(server.target, token=TOKENS["alice"]) for server in replicas)
    olga_there = Stubs(two.target, token=TOKENS["olga"])
    session_id = opened(alice_here, durability=ses.DURABILITY_SYNC)
    for method, call in BY_ID.items():
        answer = said(lambda: call(olga_there, session_id), session_id)  # noqa: B023
        assert answer[0] == "NOT_FOUND SESSION_NOT_FOUND", method
    assert step(alice_here, session_id) == 6.0  # it was not taken from the server that has it
    assert step(alice_there, session_id) == 7.0  # and its owner can take it
    one.kill()
    assert step(alice_there, session_id) == 8.0
    assert refused(lambda: step(olga_there, session_id)) == "NOT_FOUND SESSION_NOT_FOUND"
    attack("store", "another's durable session, asked for at another server, and after a crash",
           "NOT_FOUND; it stays where it is")  # fmt: skip


def test_a_snapshot_opens_a_session_of_whoever_imports_it(caller: Caller, attack: Attack) -> None:
    olga, alice = caller("olga"), caller("alice")
    session_id = opened(olga)
    snapshot = olga.sessions.ExportSession(ses.ExportSessionRequest(session_id=session_id)).snapshot
    copy = olga.sessions.ImportSession(ses.ImportSessionRequest(snapshot=snapshot)).session.session_id
    assert step(olga, copy) == 6.0
    assert refused(lambda: step(alice, copy)) == "NOT_FOUND SESSION_NOT_FOUND"
    attack("gRPC port", "a session that was imported from another's snapshot", "its importer's alone")


def test_ids_that_the_server_makes_cannot_be_guessed(caller: Caller, guarded: Any, attack: Attack) -> None:
    alice = caller("alice")
    ids = [alice.sessions.OpenSession(ses.OpenSessionRequest(model="counter")).session.session_id for _ in range(200)]
    assert len(set(ids)) == 200
    assert min(map(len, ids)) >= 22  # 128 random bits
    for position in range(21):  # every character varies: nothing counts up, nothing is a time
        assert len({session_id[position] for session_id in ids}) > 30
    for session_id in ids:
        alice.sessions.CloseSession(ses.CloseSessionRequest(session_id=session_id))
        assert session_id not in guarded.output
    attack("gRPC port", "guessing session ids", "128 random bits each")
