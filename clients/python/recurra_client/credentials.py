"""How a client shows who it is, and finds out whom it talks to."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import grpc

Token = str | Callable[[], str]

_LOCAL: Final = grpc.LocalConnectionType.LOCAL_TCP


def tls(ca: Path | None = None, certificate: Path | None = None, key: Path | None = None) -> grpc.ChannelCredentials:
    """Credentials for a server with TLS, from PEM files.

    Args:
        ca: Who signs the server's certificate. None: whom this machine trusts.
        certificate: The client's own, and those between it and its root, where the server asks for one.
        key: Its private key.

    Raises:
        ValueError: Of certificate and key there is only one.
        OSError: A file cannot be read.
    """
    if (certificate is None) != (key is None):
        raise ValueError("a certificate of one's own needs its key, and the key its certificate: give both or neither")
    read = [None if path is None else path.read_bytes() for path in (ca, key, certificate)]
    return grpc.ssl_channel_credentials(*read)


def with_token(credentials: grpc.ChannelCredentials | None, token: Token) -> grpc.ChannelCredentials:
    """Credentials that show a token with each call.

    Without TLS it is sent to this machine only: on a network, whoever reads it has it.
    """
    source = token if callable(token) else lambda: token
    return grpc.composite_channel_credentials(
        credentials or grpc.local_channel_credentials(_LOCAL),
        grpc.metadata_call_credentials(_Bearer(source), name="recurra"),
    )


class _Bearer(grpc.AuthMetadataPlugin):
    """Puts the token in front of each call."""

    def __init__(self, source: Callable[[], str]) -> None:
        self._source = source

    def __call__(self, _: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback) -> None:
        try:
            callback((("authorization", f"Bearer {self._source().strip()}"),), None)
        except Exception as error:
            callback((), error)
