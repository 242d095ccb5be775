"""The access file: who may do what, and how much of it.

It is YAML; docs/security.md shows one. Every field is checked when it is read.
"""

import hashlib
import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from recurra_server.engine.accounts import Quota
from recurra_server.security.identity import Role

_SHORTEST_TOKEN = 20
_Positive = Annotated[int, Field(gt=0)]
# None with a shared secret: then everybody who can check a token could make one.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class PolicyError(Exception):
    """The access file cannot be used; the message says why in one line, and nothing of what is secret in it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class IdentityLimits(_Strict):
    """Bounds of one identity; what is not given has none."""

    sessions: _Positive | None = None
    state_mb: Annotated[float, Field(gt=0)] | None = None
    steps_per_second: Annotated[float, Field(gt=0)] | None = None

    @property
    def quota(self) -> Quota:
        """As the engine has them."""
        state_bytes = None if self.state_mb is None else round(self.state_mb * 2**20)
        return Quota(self.sessions, state_bytes, self.steps_per_second)


class Somebody(_Strict):
    """What is said of everybody who is named in the file."""

    name: Annotated[str, Field(min_length=1, max_length=256)]
    roles: frozenset[Role]
    limits: IdentityLimits | None = None


class Token(Somebody):
    """Who has this token. Its SHA-256 is enough; the token itself is for trying things out."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = ""
    token: SecretStr = SecretStr("")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        secret = self.token.get_secret_value()
        if bool(self.sha256) == bool(secret):
            raise ValueError("give either sha256 or token")
        if secret and len(secret) < _SHORTEST_TOKEN:
            raise ValueError(f"a token has at least {_SHORTEST_TOKEN} characters: openssl rand -hex 24")
        return self

    @property
    def digest(self) -> bytes:
        """SHA-256 of the token."""
        return bytes.fromhex(self.sha256) or hashlib.sha256(self.token.get_secret_value().encode()).digest()


class Certificate(Somebody):
    """Who has a certificate with this name: a URI or DNS name that it is for, or its common name; "*" is any."""


class Jwt(_Strict):
    """Whose tokens are taken."""

    issuer: str
    audience: str
    jwks: str
    """Where the issuer's keys are: an https URL, or a file."""
    algorithms: tuple[Algorithm, ...] = ("RS256", "ES256", "EdDSA")
    leeway: Annotated[float, Field(ge=0, le=300)] = 30.0
    """Seconds that clocks may differ."""
    identity_claim: str = "sub"
    roles_claim: str = "roles"
    """A list, or words in a text: those that are roles are given."""
    roles: frozenset[Role] = frozenset()
    """Given to everybody who has a token."""
    limits: IdentityLimits | None = None

    @model_validator(mode="after")
    def _no_plain_http(self) -> Self:
        parts = urlsplit(self.jwks)
        if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
            raise ValueError("jwks: keys that come over http could be anybody's: use https")
        return self


class Policy(_Strict):
    """All of the file."""

    tokens: tuple[Token, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    jwt: Jwt | None = None
    limits: IdentityLimits = IdentityLimits()
    """Of everybody who has none of their own."""

    @model_validator(mode="after")
    def _names_are_different(self) -> Self:
        for what in (self.tokens, self.certificates):
            names = [entry.name for entry in what]
            if len(set(names)) < len(names):
                raise ValueError(f"the name {max(names, key=names.count)!r} stands twice")
        return self


def read_policy(path: Path) -> Policy:
    """Read an access file.

    Raises:
        PolicyError: It cannot be used.
    """
    try:
        found = yaml.safe_load(path.read_text())
    except OSError as error:
        raise PolicyError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place is not None else ""
        raise PolicyError(f"{path} is not YAML{where}") from None
    try:
        return Policy.model_validate({} if found is None else found)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise PolicyError(
            f"{path}: {where + ': ' if where else ''}{first['msg'].removeprefix('Value error, ')}"
        ) from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
