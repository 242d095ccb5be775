"""Who calls."""

import hashlib
import math
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum

from recurra_server.engine.accounts import Account

LONGEST_NAME = 1024
"""Characters of a name from a token or a certificate."""


class Role(StrEnum):
    """What somebody may do."""

    PREDICT = "predict"
    """Open sessions, step them, and look at the models."""
    OPERATE = "operate"
    """Load and unload models, export and import sessions, look inside the server."""
    METRICS = "metrics"
    """Read the metrics."""


@dataclass(frozen=True, slots=True, eq=False)
class Identity:
    """Somebody who has shown who they are.

    Attributes:
        name: For logs; with where it comes from in front, so that names from different places never meet.
        entry: What of the access file they are known by.
        roles: What they may do.
        account: Their sessions.
        expires_at: Until when it holds, in seconds since 1970.
        certificate: SHA-256 of the certificate that has yet to be shown with it; None where none has to.
        key: The issuer's key that their token is signed with (`IssuerKeys`); None where no issuer vouches for them.
    """

    name: str
    entry: object
    roles: frozenset[Role]
    account: Account
    expires_at: float = math.inf
    certificate: bytes | None = None
    key: object = None


def account_key(name: str) -> str:
    """What an identity's account is called: a hash, for names are long and end up in the store."""
    return hashlib.blake2b(name.encode(), digest_size=16).hexdigest()


CALLER: ContextVar[Identity | None] = ContextVar("caller", default=None)
"""Whose call this is; None where callers are not told apart."""


def caller_account() -> Account | None:
    """The account of whose call this is; None where callers are not told apart."""
    identity = CALLER.get()
    return None if identity is None else identity.account
