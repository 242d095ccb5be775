"""What has to be there before a server can start."""

import asyncio
import ipaddress
import re
from pathlib import Path

from onnxruntime import SessionOptions

from recurra_server.engine.accounts import Accounts
from recurra_server.engine.ports import SessionStore
from recurra_server.runtimes.operators import OperatorsError, register
from recurra_server.security.access import Access
from recurra_server.security.certificates import CertificateError, Certificates
from recurra_server.security.policy import PolicyError
from recurra_server.settings import Settings
from recurra_server.stores.embedded import EmbeddedError, EmbeddedValkey
from recurra_server.stores.valkey import ValkeyStore

_EMBEDDED = "embedded"
_FOLDER = "sessions"
_NO_URL = (
    "that is no URL of a store, which is valkey://host:port, valkeys://host:port (with TLS), unix:///path/to/socket, "
    "sentinel://host:port,host:port/service, cluster://host:port,host:port (clusters:// with TLS), or "
    "embedded:<folder>; in a password, write / as %2F, # as %23, ? as %3F, @ as %40 and % as %25"
)


class StartError(Exception):
    """The server cannot start; the message says why in one line."""


class Store:
    """A store with, if it is embedded, the Valkey that it is in.

    Attributes:
        sessions: What is kept.
    """

    def __init__(self, sessions: SessionStore, embedded: EmbeddedValkey | None = None) -> None:
        self.sessions = sessions
        self._embedded = embedded

    async def start(self) -> None:
        """Start what is embedded.

        Raises:
            StartError: It cannot.
        """
        if self._embedded is not None:
            try:
                await asyncio.to_thread(self._embedded.start)
            except (EmbeddedError, OSError) as error:
                raise StartError(str(error)) from None

    async def stop(self) -> None:
        """Leave the store, and stop what is embedded if nobody else uses it."""
        await self.sessions.close()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.stop)


def open_store(where: str) -> Store:
    """The store that a setting names; nothing is asked of it yet.

    Raises:
        StartError: It names none.
    """
    kind, _, folder = where.partition(":")
    try:
        if kind != _EMBEDDED:
            return Store(ValkeyStore(where))
        embedded = EmbeddedValkey(Path(folder or _FOLDER))
        return Store(ValkeyStore(embedded.url), embedded)
    except EmbeddedError as error:
        raise StartError(f"--store: {error}") from None
    except ValueError:  # whose words may be a part of a password
        raise StartError(f"--store: {_NO_URL}") from None


def read_certificates(settings: Settings) -> Certificates | None:
    """The certificates of a server; None where connections are not encrypted.

    Raises:
        StartError: They cannot be used, or there are none and others than this machine could connect.
    """
    tls = settings.protection
    if tls.tls_cert is not None and tls.tls_key is not None:
        try:
            return Certificates(tls.tls_cert, tls.tls_key, tls.tls_client_ca)
        except CertificateError as error:
            raise StartError(f"--tls-cert: {error}") from None
    if tls.tls_cert is not None or tls.tls_key is not None or tls.tls_client_ca is not None:
        raise StartError("TLS needs both --tls-cert and --tls-key")
    if not tls.insecure and not is_this_machine(settings.host):
        raise StartError(
            f"{settings.host} can be reached from other machines, and nothing would be encrypted: give --tls-cert and "
            "--tls-key, or --insecure where the network is trusted"
        )
    return None


def check_operators(settings: Settings) -> None:
    """See whether the libraries of operators can be used.

    Raises:
        StartError: One cannot.
    """
    try:
        register(settings.operators, SessionOptions())
    except OperatorsError as error:
        raise StartError(f"--operators: {error}") from None


def read_access(settings: Settings, accounts: Accounts) -> Access | None:
    """Who may do what; None where everybody may do everything.

    Raises:
        StartError: The access file cannot be used.
    """
    if settings.protection.access is None:
        return None
    try:
        return Access(settings.protection.access, accounts)
    except PolicyError as error:
        raise StartError(f"--access: {error}") from None


def is_this_machine(host: str) -> bool:
    """Whether nobody but this machine can connect to an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def about_encryption(settings: Settings) -> str:
    """How connections are encrypted, for whoever starts the server."""
    tls = settings.protection
    if tls.tls_cert is not None:
        return "with TLS" if tls.tls_client_ca is None else "with TLS, for clients with a certificate"
    if is_this_machine(settings.host):
        return "without encryption, for this machine only"
    return "WITHOUT ENCRYPTION: whoever is on the network can read and change what is sent"


def about_access(settings: Settings) -> str:
    """Who may do what, for whoever starts the server."""
    if settings.protection.access is None:
        return "whoever can connect may do everything (no --access)"
    return f"who may do what: {settings.protection.access}"


def about_store(settings: Settings) -> str:
    """Where sessions are kept, for whoever starts the server; the URL may hold a password."""
    where = re.sub(r"(?<=//)[^/]*@|\?.*", "", settings.store)
    return f"sessions outlive the server in {where}, ASYNC unless they ask for another durability"
