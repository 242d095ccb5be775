"""The access file as it changes, and the keys of an issuer: without a server."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Any

import pytest
from recurra_server.chores import Chores
from recurra_server.engine.accounts import Accounts
from recurra_server.engine.errors import UnauthenticatedError
from recurra_server.security.access import Access
from recurra_server.security.identity import Role
from recurra_server.security.keys import IssuerKeys

from tests.support.attacks import Attack
from tests.support.authority import TOKENS, Authority, Issuer, write_access_file


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    return Issuer(tmp_path / "issuer")


@pytest.fixture
def change(tmp_path: Path, issuer: Issuer) -> Callable[..., Path]:
    """Writes the access file anew."""

    def write(**more: Any) -> Path:
        write_access_file(tmp_path / "access.yaml", issuer, **more)
        return tmp_path / "access.yaml"

    return write


ALICE = {"name": "alice", "roles": ["predict"], "sha256": hashlib.sha256(TOKENS["alice"].encode()).hexdigest()}


@pytest.mark.parametrize(
    ("changed", "holds"),
    [
        ({}, True),
        ({"tokens": [ALICE | {"limits": {"sessions": 1}}]}, True),
        ({"tokens": []}, False),
        ({"tokens": [ALICE | {"sha256": "0" * 64}]}, False),
        ({"tokens": [ALICE | {"roles": ["metrics"]}]}, False),
    ],
)
def test_a_token_holds_while_the_file_has_it(
    change: Callable[..., Path], changed: dict[str, Any], holds: bool, attack: Attack
) -> None:
    access = Access(change(), Accounts())
    alice = access.identify(TOKENS["alice"])
    change(**changed)
    access.reload()
    assert access.still_holds(alice) is holds
    attack(
        "access file and keys",
        "a stream whose token was taken out of the file, got another hash or other roles",
        "no longer let in",
    )


def test_a_certificate_holds_while_the_file_has_its_name(
    change: Callable[..., Path], authority: Authority, attack: Attack
) -> None:
    access = Access(change(), Accounts())
    gateway = access.by_certificate(authority.client("gateway").peer)
    assert access.still_holds(gateway)
    change(certificates=[])
    access.reload()
    assert not access.still_holds(gateway)
    attack("access file and keys", "a stream whose certificate's name was taken out of the file", "no longer let in")


def test_a_certificate_holds_until_it_expires(change: Callable[..., Path], authority: Authority) -> None:
    now = time()
    access, own = Access(change(), Accounts(), clock=lambda: now), authority.client("gateway", lives=100.0)
    gateway = access.by_certificate(own.peer)
    now += 98.0
    assert access.still_holds(gateway)
    now += 10.0
    assert not access.still_holds(gateway)
    for peer in (own.peer, {**own.peer, "x509_pem_cert": [b"half a certi"]}, {"x509_common_name": [b"gateway"]}):
        with pytest.raises(UnauthenticatedError):
            access.by_certificate(peer)


@pytest.mark.parametrize(("token", "certificate"), [(100.0, 1000.0), (1000.0, 100.0)])
async def test_a_token_that_is_bound_to_a_certificate_holds_while_both_do(
    change: Callable[..., Path], issuer: Issuer, authority: Authority, token: float, certificate: float
) -> None:
    now = time()
    access, own = Access(change(), Accounts(), clock=lambda: now), authority.client("own", lives=certificate)
    headers = [f"Bearer {issuer.token(lives=token, cnf={'x5t#S256': own.thumbprint})}"]
    bearer = await access.by_token(headers)
    assert bearer is not None
    with pytest.raises(UnauthenticatedError, match="bound to a certificate"):
        access.check(bearer, Role.PREDICT)
    with pytest.raises(UnauthenticatedError, match="bound to a certificate"):
        access.with_certificate(bearer, authority.client("thief").peer)
    ann = access.with_certificate(bearer, own.peer)
    access.check(ann, Role.PREDICT)
    now += 98.0
    assert access.still_holds(ann)
    now += 10.0
    assert not access.still_holds(ann)
    with pytest.raises(UnauthenticatedError, match="has expired"):
        access.with_certificate(access.identify(headers[0].removeprefix("Bearer ")), own.peer)


def test_tokens_are_compared_in_constant_time_with_all_that_there_are(
    change: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, attack: Attack
) -> None:
    access, compared = Access(change(), Accounts()), []

    def same(one: bytes, other: bytes) -> bool:
        compared.append({one, other})
        return False

    monkeypatch.setattr("hmac.compare_digest", same)
    for shown in (TOKENS["alice"], TOKENS["alice"][:-1] + "0"):
        with pytest.raises(UnauthenticatedError):  # nothing else finds it
            access.identify(shown)
        digest = hashlib.sha256(shown.encode()).digest()
        assert compared == [{digest, hashlib.sha256(known.encode()).digest()} for known in TOKENS.values()]
        compared.clear()
    attack(
        "gRPC port", "finding a token by the time that a wrong one takes", "digests are compared, all, in constant time"
    )


async def test_a_jwt_holds_while_the_file_has_its_issuer(
    change: Callable[..., Path], issuer: Issuer, attack: Attack
) -> None:
    access = Access(change(), Accounts())
    ann = await access.by_token([f"Bearer {issuer.token()}"])
    assert ann is not None
    assert access.still_holds(ann)
    change(jwt=None)
    access.reload()
    assert not access.still_holds(ann)
    attack("access file and keys", "a stream whose issuer was taken out of the file", "no longer let in")


async def test_who_is_let_in_no_more_is_found_in_the_look_that_reads_it(change: Callable[..., Path]) -> None:
    access = Access(change(), Accounts())
    alice, looks = access.identify(TOKENS["alice"]), asyncio.Queue[bool]()
    change(tokens=[])
    kept = asyncio.create_task(access.keep_current(lambda: looks.put_nowait(access.still_holds(alice)), interval=0.0))
    assert await asyncio.wait_for(looks.get(), 10) is False, "not only in the next"
    change()
    async with asyncio.timeout(10):
        while not await looks.get():
            pass
    kept.cancel()


async def test_a_key_that_was_withdrawn_is_gone_after_five_minutes_though_nobody_asks(
    change: Callable[..., Path], issuer: Issuer
) -> None:
    now = 1000.0
    access = Access(change(), Accounts(), monotonic=lambda: now)
    ann, looks = await access.by_token([f"Bearer {issuer.token()}"]), asyncio.Queue[bool]()
    assert ann is not None
    chores = Chores()
    chores.begin(
        lambda: access.keep_keys(interval=0.0),
        lambda: access.keep_current(lambda: looks.put_nowait(access.still_holds(ann)), interval=0.0),
    )
    issuer.rotate()
    assert await asyncio.wait_for(looks.get(), 10)
    now = 1300.0
    async with asyncio.timeout(10):
        while await looks.get():
            pass
    await chores.end()


async def test_keys_are_renewed_after_five_minutes_and_no_sooner(issuer: Issuer) -> None:
    now = 1000.0
    keys = IssuerKeys(str(issuer.jwks), clock=lambda: now)
    await keys.renew()
    key, published = keys.find(None), issuer.jwks.read_text()
    issuer.jwks.unlink()
    now = 1300.0
    await keys.renew()
    assert keys.has(key), "it stays while the issuer cannot be asked"
    issuer.jwks.write_text(published)
    issuer.rotate()
    now = 1599.9
    await keys.renew()
    assert keys.has(key)
    now = 1600.0
    await keys.renew()
    assert not keys.has(key)


async def test_who_comes_while_keys_are_fetched_waits_for_them(issuer: Issuer) -> None:
    keys = IssuerKeys(str(issuer.jwks))
    first = asyncio.create_task(keys.fetch())  # as a server does when it begins
    await asyncio.sleep(0)
    await keys.look_again()
    assert keys.find(issuer.key_id) is not None
    await first


@pytest.mark.parametrize("answer", ["[]", "7", "{}", "no JSON", '{"keys": 1}', '{"keys": [1]}'])
async def test_keys_stay_whatever_the_issuer_answers(issuer: Issuer, answer: str, attack: Attack) -> None:
    keys = IssuerKeys(str(issuer.jwks))
    await keys.fetch()
    assert keys.find(None) is not None
    issuer.jwks.write_text(answer)
    await keys.fetch()
    assert keys.find(None) is not None
    attack("access file and keys", "an issuer whose keys are no keys", "those that are known stay")


async def test_a_key_is_the_same_until_the_issuer_has_it_no_more(issuer: Issuer, attack: Attack) -> None:
    keys = IssuerKeys(str(issuer.jwks))
    await keys.fetch()
    key, key_id = keys.find(None), issuer.key_id
    await keys.fetch()
    assert keys.has(key), "a stream must not end because the keys were looked at"
    issuer.rotate()
    issuer.public["kid"] = key_id
    issuer.publish()
    await keys.fetch()
    assert not keys.has(key), "another key with its id"
    key = keys.find(key_id)
    assert keys.has(key)
    issuer.jwks.write_text('{"keys": [{"kty": "of tomorrow"}]}')
    await keys.fetch()
    assert not keys.has(key)
    assert keys.find(None) is None
    attack(
        "access file and keys",
        "another key with the id of one that is known",
        "what the old one signed is worth nothing",
    )
