"""Tokens of an issuer (JWT): who is believed, and for how long."""

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
from recurra.v1.inference_pb2 import StreamStepsRequest
from recurra.v1.sessions_pb2 import OpenSessionRequest

from tests.security.conftest import Caller, ask, outcome, refused, scraped
from tests.support.attacks import Attack
from tests.support.authority import Authority, Issuer, write_access_file
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, tensor


def test_a_token_of_the_issuer_is_taken(caller: Caller, issuer: Issuer) -> None:
    assert ask(caller(issuer.token())) == 2
    assert refused(lambda: ask(caller(issuer.token(roles=["metrics"])))) == "PERMISSION_DENIED FORBIDDEN"
    assert ask(caller(issuer.token(roles="openid predict"))) == 2


def test_the_metrics_are_for_tokens_with_their_role(
    guarded: ServerProcess, authority: Authority, issuer: Issuer, attack: Attack
) -> None:
    def scrape(**claims: Any) -> int:
        return scraped(guarded, authority, f"Bearer {issuer.token(**claims)}")

    assert scrape(roles=["metrics"]) == 200
    wrong: dict[str, dict[str, Any]] = {
        "a JWT that has expired": {"roles": ["metrics"], "lives": -1.0},
        "a JWT without the role": {"roles": ["predict", "operate"]},
        "a JWT bound to a certificate": {"roles": ["metrics"], "cnf": {"x5t#S256": "A" * 43}},
    }
    for tried, claims in wrong.items():
        assert scrape(**claims) == 401
        attack("metrics port", tried, "401")


def forged(issuer: Issuer, tmp_path: Path) -> dict[str, str]:
    """Tokens that must not be taken."""
    now = time.time()
    claims = jwt.decode(issuer.token(roles=["predict", "operate"]), options={"verify_signature": False})
    headers = {"kid": issuer.key_id}
    good = issuer.token()
    head, _, signature = good.split(".")
    stranger = Issuer(tmp_path / "stranger")
    stranger.key_id = issuer.key_id
    no_signature = jwt.encode(claims, None, "none", headers=headers)  # type: ignore[arg-type]
    # The public key, which everybody has, as if it were a shared secret (CVE-2016-5431 and its kin).

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signed = f"{part(json.dumps({'alg': 'HS256', 'kid': issuer.key_id}).encode())}.{part(json.dumps(claims).encode())}"
    mac = part(hmac.new(issuer.public_pem, signed.encode(), hashlib.sha256).digest())
    return {
        "a JWT that has expired": issuer.token(lives=-1.0),
        "a JWT that is not valid yet": issuer.token(nbf=now + 300),
        "a JWT for another audience": issuer.token(aud="other"),
        "a JWT of another issuer": issuer.token(iss="https://evil.test"),
        "a JWT without expiry": issuer.token(exp=None),
        "a JWT without audience": issuer.token(aud=None),
        "a JWT without subject": issuer.token(sub=None),
        "a JWT signed with a key of one's own": stranger.token(),
        "a JWT without signature (alg none)": no_signature,
        "a JWT signed with the public key (alg HS256)": f"{signed}.{mac}",
        "a JWT whose claims were changed": f"{head}.{part(json.dumps(claims).encode())}.{signature}",
        "a JWT cut short": good[:-10],
        "a JWT bound to a certificate, without it (replayed)": issuer.token(cnf={"x5t#S256": "A" * 43}),
        "a JWT bound to what cannot be checked": issuer.token(cnf={"jkt": "x"}),
        "dots": "..",
        "a header that is a list": f"{part(b'[]')}.{part(b'{}')}.",
    }


def test_forged_tokens_are_refused(caller: Caller, issuer: Issuer, tmp_path: Path, attack: Attack) -> None:
    for tried, token in forged(issuer, tmp_path).items():
        came_back = refused(lambda t=token: ask(caller(t)))  # type: ignore[misc]
        assert came_back == "UNAUTHENTICATED", tried
        attack("gRPC port", tried, came_back)


def test_a_new_key_of_the_issuer_is_known_at_once_and_the_old_one_no_more(
    repository: Path, tmp_path: Path, attack: Attack
) -> None:
    issuer, access_file = Issuer(tmp_path / "issuer"), tmp_path / "access.yaml"
    write_access_file(access_file, issuer)
    with running_server(repository, "--access", str(access_file), "--no-metrics", ready="who may") as server:
        shown, not_shown = issuer.token("shown", lives=1e8), issuer.token("not shown yet", lives=1e8)
        stubs = Stubs(server.target, token=shown)
        assert ask(stubs) == 2
        stream = Stream(stubs)
        assert stream.ask(open=OpenSessionRequest(model="counter")).opened.session_id
        issuer.rotate()  # within ten seconds of the first look, so the next is due later
        deadline = time.monotonic() + 60
        while (came_back := outcome(server, issuer.token())) != "ok":
            assert came_back == "UNAUTHENTICATED"
            assert time.monotonic() < deadline
        assert outcome(server, issuer.token("another")) == "ok"
        for signed_before in (shown, not_shown):
            assert outcome(server, signed_before) == "UNAUTHENTICATED"
        assert refused(stream.read) == "UNAUTHENTICATED"
        stubs.channel.close()
        attack(
            "gRPC port", "a JWT signed with a key that its issuer has withdrawn, shown before or not", "UNAUTHENTICATED"
        )
        attack("gRPC port", "a stream whose token was signed with such a key", "ended with UNAUTHENTICATED")


def test_a_stream_ends_when_its_token_expires(caller: Caller, issuer: Issuer, attack: Attack) -> None:
    stubs = caller(issuer.token(lives=2.0))
    opening = StreamStepsRequest(open=OpenSessionRequest(model="counter"), inputs=[tensor([1.0])])

    def messages() -> Iterator[StreamStepsRequest]:
        yield opening
        pause.wait(60)

    pause = threading.Event()
    call = stubs.inference.StreamSteps(messages())
    assert next(call).result.step == 1
    assert refused(lambda: next(call)) == "UNAUTHENTICATED"
    pause.set()
    attack("gRPC port", "a stream that outlives its token", "ended with UNAUTHENTICATED")
