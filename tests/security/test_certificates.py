"""Client certificates: who they say somebody is, before a message is read."""

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from recurra.openinference import open_inference_pb2 as oip
from recurra.v1.models_pb2 import LoadModelRequest
from recurra.v1.sessions_pb2 import OpenSessionRequest

from tests.security.conftest import ask, refused
from tests.support.attacks import Attack
from tests.support.authority import TOKENS, Authority, Issuer
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs


@pytest.fixture(scope="module")
def mutual(repository: Path, authority: Authority, access_file: Path) -> Iterator[ServerProcess]:
    """A server whose clients have certificates."""
    flags = (*authority.flags(), "--tls-client-ca", str(authority.ca), "--access", str(access_file), "--no-metrics")
    with running_server(repository, *flags, ready="who may") as server:
        yield server


def test_a_certificate_says_who_somebody_is(mutual: ServerProcess, authority: Authority, attack: Attack) -> None:
    gateway = Stubs(mutual.target, authority.client("gateway").credentials())
    assert ask(gateway) == 2
    load = LoadModelRequest(name="counter")
    assert refused(lambda: gateway.models.LoadModel(load)) == "PERMISSION_DENIED FORBIDDEN"
    stream = gateway.inference.StreamSteps(iter(()))
    assert list(stream) == []
    stranger = Stubs(mutual.target, authority.client("stranger").credentials())
    assert refused(lambda: ask(stranger)) == "UNAUTHENTICATED"
    attack("gRPC port", "a certificate of ours with a name that is not in the access file", "UNAUTHENTICATED")
    for stubs in (gateway, stranger):
        stubs.channel.close()


def test_a_stranger_is_refused_before_a_message_is_read(
    mutual: ServerProcess, authority: Authority, attack: Attack
) -> None:
    never = threading.Event()

    def no_message() -> Iterator[Any]:
        never.wait(60)
        yield b""

    stubs = Stubs(mutual.target, authority.client("stranger").credentials())
    for method in ("/recurra.v1.InferenceService/Step", "/recurra.v1.InferenceService/Generate"):
        call: Any = stubs.channel.stream_stream(method)
        assert refused(partial(call, no_message(), timeout=20)) == "UNAUTHENTICATED"
    never.set()
    stubs.channel.close()
    attack("gRPC port", "a stranger's call that sends no message", "UNAUTHENTICATED, before one is read")


def test_who_sends_no_message_is_told_so(mutual: ServerProcess, authority: Authority) -> None:
    stubs = Stubs(mutual.target, authority.client("gateway").credentials())
    call: Any = stubs.channel.stream_stream("/recurra.v1.InferenceService/Step")
    assert refused(partial(call, iter(()), timeout=20)) == "INVALID_ARGUMENT"
    stubs.channel.close()


def test_a_stolen_token_is_useless_without_the_certificate_it_is_bound_to(
    mutual: ServerProcess, authority: Authority, issuer: Issuer, attack: Attack
) -> None:
    own, thief = authority.client("own"), authority.client("thief")
    token = issuer.token(cnf={"x5t#S256": own.thumbprint})
    assert ask(Stubs(mutual.target, own.credentials(), token=token)) == 2
    came_back = refused(lambda: ask(Stubs(mutual.target, thief.credentials(), token=token)))
    assert came_back == "UNAUTHENTICATED"
    attack("gRPC port", "a stolen token that is bound to a certificate (RFC 8705), with another certificate", came_back)
    infer = oip.ModelReadyRequest(name="counter")
    assert Stubs(mutual.target, own.credentials(), token=token).open_inference.ModelReady(infer).ready


def test_what_a_certificate_let_in_ends_when_it_expires(
    mutual: ServerProcess, authority: Authority, issuer: Issuer, attack: Attack
) -> None:
    own = authority.client("gateway", lives=4.0)
    by_name, bound, other = (
        Stubs(mutual.target, own.credentials(), token=token)
        for token in ("", issuer.token(cnf={"x5t#S256": own.thumbprint}), TOKENS["alice"])
    )
    streams = {stubs: Stream(stubs, timeout=20) for stubs in (by_name, bound, other)}
    for stream in streams.values():
        assert stream.ask(open=OpenSessionRequest(model="counter")).opened.session_id
    for stubs in (by_name, bound):
        assert refused(streams[stubs].read) == "UNAUTHENTICATED"
        assert refused(lambda: ask(stubs)) == "UNAUTHENTICATED", "on the same connection"  # noqa: B023
    assert ask(other) == 2, "that is known by something else"
    assert streams[other].end() == []
    attack(
        "gRPC port",
        "a stream that outlives the certificate it was let in by, or bound to",
        "ended with UNAUTHENTICATED",
    )
    attack("gRPC port", "calls on a connection that outlives its certificate", "UNAUTHENTICATED")
    for stubs in streams:
        stubs.channel.close()
