"""Tells who calls: from a token, or from a client's certificate."""

import asyncio
import hashlib
import hmac
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from recurra_server.engine.accounts import Accounts
from recurra_server.engine.errors import ForbiddenError, UnauthenticatedError
from recurra_server.security.client_certificate import ClientCertificate, read_client_certificate
from recurra_server.security.identity import Identity, Role, account_key
from recurra_server.security.keys import IssuerKeys
from recurra_server.security.policy import Certificate, IdentityLimits, Jwt, Policy, PolicyError, Token, read_policy
from recurra_server.security.tokens import key_id, read_claims, refused, token_of

_log = structlog.get_logger(__name__)
_MOST_REMEMBERED = 10_000
_LOOK_SECONDS = 0.4  # what is taken back is worth nothing within a second, in which there have to be two looks


class Access:
    """Who may do what, as the access file says; it is read again when it changes.

    Belongs to the event loop's thread, but for `may_read_metrics`.

    Args:
        path: The file.
        accounts: Where sessions lie.
        clock: The time of day, in seconds, which tokens are held against.
        monotonic: Seconds that only go on, by which the issuer's keys are renewed.

    Raises:
        PolicyError: The file cannot be used.
    """

    def __init__(
        self,
        path: Path,
        accounts: Accounts,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._accounts = accounts
        self._clock = clock
        self._monotonic = monotonic
        self._remembered: OrderedDict[bytes, Identity] = OrderedDict()  # by the SHA-256 of their tokens
        self._static: list[tuple[bytes, Identity]] = []
        self._keys: IssuerKeys | None = None
        self._policy = Policy()
        self._seen = self._stamp()
        self._adopt(read_policy(path))

    @property
    def has_certificates(self) -> bool:
        """Whether a certificate alone can say who somebody is."""
        return bool(self._policy.certificates)

    # --- the file --------------------------------------------------------------------------

    async def keep_current(self, then: Callable[[], object] = lambda: None, interval: float = _LOOK_SECONDS) -> None:
        """Read the file again when it changes; do `then` after each look, changed or not."""
        while True:
            await asyncio.sleep(interval)
            self.reload()
            then()

    async def keep_keys(self, interval: float = 1.0) -> None:
        """Renew the issuer's keys when it is time: apart from the file, which an issuer must not hold up."""
        while True:
            if self._keys is not None:
                await self._keys.renew()
            await asyncio.sleep(interval)

    def reload(self) -> None:
        """Read the file again if it has changed; one that cannot be used changes nothing."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            policy = read_policy(self._path)
        except PolicyError as error:
            _log.error("access_file_refused", why=str(error))
            return
        self._adopt(policy)
        _log.info("access_file_reloaded", tokens=len(policy.tokens), certificates=len(policy.certificates))

    def _adopt(self, policy: Policy) -> None:
        if policy.jwt is None:
            self._keys = None
        elif self._keys is None or self._keys.source != policy.jwt.jwks:
            self._keys = IssuerKeys(policy.jwt.jwks, clock=self._monotonic)
        self._policy = policy
        self._remembered.clear()
        self._static = [
            (entry.digest, self._identity(f"token:{entry.name}", entry, entry.roles, entry.limits))
            for entry in policy.tokens
        ]

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError:
            return 0, 0, 0
        return status.st_mtime_ns, status.st_size, status.st_ino

    # --- who it is -------------------------------------------------------------------------

    async def by_token(self, authorization: Sequence[str | bytes]) -> Identity | None:
        """Who shows a token in these headers; None where there is none.

        Raises:
            UnauthenticatedError: It is not known, or does not hold (any more).
        """
        token = token_of(authorization)
        if token is None:
            return None
        try:
            return self.identify(token)
        except _UnknownKeyError:
            assert self._keys is not None  # noqa: S101 - else there are no keys to miss
            await self._keys.look_again()
        try:
            return self.identify(token)
        except _UnknownKeyError:
            raise refused("it is signed with a key that its issuer does not have") from None

    def identify(self, token: str) -> Identity:
        """Who shows a token.

        Raises:
            UnauthenticatedError: It is not known, or does not hold (any more).
        """
        digest = hashlib.sha256(token.encode()).digest()
        found = None
        for known, identity in self._static:  # all of them, whichever it is: the time taken tells nothing
            if hmac.compare_digest(known, digest):
                found = identity
        if found is not None:
            return found
        if self._policy.jwt is None or self._keys is None or token.count(".") != 2:
            raise refused("it is not known")
        remembered = self._remembered.get(digest)
        if remembered is None or not self._keys.has(remembered.key):
            self._remembered.pop(digest, None)
            remembered = self._remembered[digest] = self._by_jwt(token, self._policy.jwt, self._keys)
            if len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)
        elif remembered.expires_at <= self._clock():
            self._remembered.pop(digest, None)  # another thread may have been quicker
            raise refused("it has expired")
        return remembered

    def by_certificate(self, peer: Mapping[str, Sequence[bytes]]) -> Identity:
        """Who a client's certificate is for.

        Args:
            peer: What gRPC tells of it.

        Raises:
            UnauthenticatedError: There is none, it has expired, or nobody in the file has its name.
        """
        certificate = self._certificate(peer)
        if certificate is None or not certificate.names:
            raise nobody()
        for entry in self._policy.certificates:
            if entry.name == "*" or entry.name in certificate.names:
                return self._by_name(entry, certificate)
        raise UnauthenticatedError("nobody in the server's access file has a name of your certificate")

    def with_certificate(self, identity: Identity, peer: Mapping[str, Sequence[bytes]]) -> Identity:
        """Somebody whose token is bound to a certificate, when they have shown that, too: while both hold.

        Args:
            identity: Who shows the token.
            peer: What gRPC tells of their certificate.

        Raises:
            UnauthenticatedError: It is not that certificate, or has expired.
        """
        shown = self._certificate(peer)
        if shown is None or not hmac.compare_digest(shown.thumbprint, identity.certificate or b""):
            raise _unbound()
        return replace(identity, certificate=None, expires_at=min(identity.expires_at, shown.expires_at))

    def check(self, identity: Identity, role: Role) -> None:
        """Whether somebody may do something.

        Raises:
            UnauthenticatedError: Their token is bound to a certificate, which has not been shown.
            ForbiddenError: They may not.
        """
        if identity.certificate is not None:
            raise _unbound()
        if role not in identity.roles:
            raise ForbiddenError(f"this needs the role {role.value!r}, which you do not have", role=role.value)

    def may_read_metrics(self, authorization: str) -> bool:
        """Whether a request over HTTP may read the metrics. Any thread."""
        try:
            token = token_of([authorization] if authorization else [])
            if token is None:
                return False
            self.check(self.identify(token), Role.METRICS)
        except (UnauthenticatedError, ForbiddenError, _UnknownKeyError):
            return False
        return True

    def still_holds(self, identity: Identity) -> bool:
        """Whether somebody who makes predictions would still be let in: the file or the keys may have changed since."""
        if identity.expires_at <= self._clock():
            return False
        entry, policy = identity.entry, self._policy
        match entry:
            case Token():
                return any(Role.PREDICT in now.roles for now in policy.tokens if now.digest == entry.digest)
            case Certificate():
                return any(Role.PREDICT in now.roles for now in policy.certificates if now.name == entry.name)
            case _:
                return policy.jwt == entry and self._keys is not None and self._keys.has(identity.key)

    def _certificate(self, peer: Mapping[str, Sequence[bytes]]) -> ClientCertificate | None:
        certificate = read_client_certificate(peer)
        if certificate is not None and certificate.expires_at <= self._clock():
            raise UnauthenticatedError("your certificate has expired")
        return certificate

    def _by_name(self, entry: Certificate, shown: ClientCertificate) -> Identity:
        name = shown.names[0] if entry.name == "*" else entry.name
        return self._identity(f"certificate:{name}", entry, entry.roles, entry.limits, expires_at=shown.expires_at)

    def _by_jwt(self, token: str, issuer: Jwt, keys: IssuerKeys) -> Identity:
        key = keys.find(key_id(token))
        if key is None:
            raise _UnknownKeyError
        claims = read_claims(token, issuer, key)
        return self._identity(
            f"jwt:{issuer.issuer}:{claims.subject}",
            issuer,
            claims.roles,
            issuer.limits,
            expires_at=claims.expires_at,
            certificate=claims.certificate,
            key=key,
        )

    def _identity(
        self,
        name: str,
        entry: Token | Certificate | Jwt,
        roles: frozenset[Role],
        limits: IdentityLimits | None,
        **more: Any,
    ) -> Identity:
        quota = (limits or self._policy.limits).quota
        return Identity(name, entry, roles, self._accounts.of(account_key(name), quota), **more)


class _UnknownKeyError(Exception):
    """A token is signed with a key that is not known yet."""


def _unbound() -> UnauthenticatedError:
    return refused("it is bound to a certificate, which was not shown with it (RFC 8705)")


def nobody() -> UnauthenticatedError:
    """The error for who does not say who they are."""
    return UnauthenticatedError("say who you are: with a token, as `authorization: Bearer <token>` in the metadata")
