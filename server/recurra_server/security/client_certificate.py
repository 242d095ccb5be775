"""A client's certificate: who it is for, which one it is, and until when it holds.

gRPC looks at it in the handshake and never again, so a connection can outlive it. That it still holds is for the calls
to see whose caller is known by it.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from recurra_server.engine.errors import UnauthenticatedError
from recurra_server.security.identity import LONGEST_NAME

# What gRPC tells of its names, in the order in which they are looked at.
_NAMES = ("peer_spiffe_id", "x509_uri", "x509_dns", "x509_common_name")


class ClientCertificate(NamedTuple):
    """What a client's certificate says, which was good when the client connected."""

    names: tuple[str, ...]
    thumbprint: bytes
    """Its SHA-256."""
    expires_at: float
    """Time of day in seconds since 1970."""


def read_client_certificate(peer: Mapping[str, Sequence[bytes]]) -> ClientCertificate | None:
    """The certificate that was shown on a connection, from what gRPC tells of it; None where none was.

    Raises:
        UnauthenticatedError: It cannot be read.
    """
    pems = peer.get("x509_pem_cert", ())
    if not pems:
        return None
    try:
        thumbprint, expires_at = _look_into(pems[0])
    except ValueError:
        raise UnauthenticatedError("the server cannot read your certificate") from None
    names = tuple(name.decode(errors="replace")[:LONGEST_NAME] for kind in _NAMES for name in peer.get(kind, ()))
    return ClientCertificate(names, thumbprint, expires_at)


@lru_cache(maxsize=1000)  # each call brings it anew
def _look_into(pem: bytes) -> tuple[bytes, float]:
    certificate = x509.load_pem_x509_certificate(pem)
    return certificate.fingerprint(SHA256()), certificate.not_valid_after_utc.timestamp()
