"""What a token says: found in the headers, and held against its issuer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jwt

from recurra_server.engine.errors import UnauthenticatedError
from recurra_server.security.identity import LONGEST_NAME, Role
from recurra_server.security.policy import Jwt

_LONGEST_TOKEN = 8192
_SCHEME = "bearer "


class Claims(NamedTuple):
    """What a JWT says that holds."""

    subject: str
    roles: frozenset[Role]
    expires_at: float
    """Time of day in seconds, with the leeway."""
    certificate: bytes | None
    """SHA-256 of the certificate that it is bound to; None where it is to none."""


def refused(why: str) -> UnauthenticatedError:
    """The error for who shows a token that does not hold."""
    return UnauthenticatedError(f"your token is not accepted: {why}")


def token_of(authorization: Sequence[str | bytes]) -> str | None:
    """The token in the headers of this name.

    Raises:
        UnauthenticatedError: They are not one, of a known kind.
    """
    if not authorization:
        return None
    header = authorization[0]
    if len(authorization) > 1 or not isinstance(header, str) or not header[: len(_SCHEME)].lower() == _SCHEME:
        raise UnauthenticatedError("the metadata `authorization` must be one, and `Bearer` with a token")
    token = header[len(_SCHEME) :].strip()
    if not token or len(token) > _LONGEST_TOKEN or not token.isascii():
        raise refused("it is not known")
    return token


def read_claims(token: str, issuer: Jwt, key: Any) -> Claims:
    """What a JWT says, signed with a key of its issuer.

    Raises:
        UnauthenticatedError: It does not hold (any more).
    """
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=list(issuer.algorithms),
            audience=issuer.audience,
            issuer=issuer.issuer,
            leeway=issuer.leeway,
            options={"require": ["exp", "iss", "aud", issuer.identity_claim]},
        )
    except jwt.ExpiredSignatureError:
        raise refused("it has expired") from None
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise _does_not_hold(error) from None
    subject = claims[issuer.identity_claim]
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_NAME:
        raise refused(f"its {issuer.identity_claim} is no name")
    roles = issuer.roles | _roles_in(claims.get(issuer.roles_claim))
    return Claims(subject, roles, float(claims["exp"]) + issuer.leeway, _bound_to(claims))


def key_id(token: str) -> Any:
    """Which of its issuer's keys a JWT says that it is signed with.

    Raises:
        UnauthenticatedError: It is none.
    """
    try:
        return jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, TypeError) as error:
        raise _does_not_hold(error) from None


def _does_not_hold(error: Exception) -> UnauthenticatedError:
    return refused(f"it does not hold ({type(error).__name__.removesuffix('Error')})")


def _roles_in(claim: object) -> frozenset[Role]:
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(Role(word) for word in words if word in list(Role))


def _bound_to(claims: Mapping[str, Any]) -> bytes | None:
    """SHA-256 of the certificate that a token is bound to (RFC 8705, section 3.1)."""
    confirmation = claims.get("cnf")
    if confirmation is None:
        return None
    try:
        return jwt.utils.base64url_decode(confirmation["x5t#S256"])
    except (KeyError, TypeError, ValueError):
        raise refused("it is bound to something that the server cannot check") from None
