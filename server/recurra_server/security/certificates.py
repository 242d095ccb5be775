"""The server's certificate, and of whom it accepts one; read again whenever the files have changed."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)


class CertificateError(Exception):
    """The files cannot be used; the message says why in one line."""


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files hold.

    Attributes:
        chain: The server's certificate, and those between it and its root.
        key: Its private key.
        client_ca: Who signs the certificates of clients; None where they need none.
    """

    chain: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """The certificate files of a server, on any thread.

    Raises:
        CertificateError: They cannot be read, or do not belong together.
    """

    def __init__(self, chain: Path, key: Path, client_ca: Path | None = None) -> None:
        self._chain, self._key, self._client_ca = chain, key, client_ca
        self._seen = self._stamps()
        self.pems = self._read()

    @property
    def mutual(self) -> bool:
        """Whether clients need a certificate too."""
        return self._client_ca is not None

    def changed(self) -> Pems | None:
        """What the files hold, if that has changed since this was asked last; what cannot be used is left."""
        stamps = self._stamps()
        if stamps == self._seen:
            return None
        self._seen = stamps
        try:
            self.pems = self._read()
        except CertificateError as error:
            _log.error("certificates_refused", why=str(error))
            return None
        _log.info("certificates_reloaded")
        return self.pems

    def context(self) -> ssl.SSLContext:
        """For Python's own servers, which take the certificate that is there when this is asked."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self._chain, self._key, _no_password)
            if self._client_ca is not None:
                context.load_verify_locations(self._client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as error:
            raise CertificateError(
                f"{self._chain}, {self._key} and the certificates beside them do not belong together: "
                f"{error.reason or error}"
            ) from None
        except (OSError, ValueError) as error:
            raise CertificateError(str(error)) from None
        return context

    def _read(self) -> Pems:
        try:
            pems = Pems(
                self._chain.read_bytes(),
                self._key.read_bytes(),
                None if self._client_ca is None else self._client_ca.read_bytes(),
            )
        except OSError as error:
            raise CertificateError(f"{error.filename}: {error.strerror}") from None
        self.context()  # which looks whether they belong together
        return pems

    def _stamps(self) -> list[tuple[int, int, int]]:
        stamps = []
        for path in (self._chain, self._key, self._client_ca):
            if path is not None:
                try:
                    status = path.stat()
                    stamps.append((status.st_mtime_ns, status.st_size, status.st_ino))
                except OSError:
                    stamps.append((0, 0, 0))
        return stamps


def _no_password() -> str:
    raise ValueError("the private key needs a password; store it without one, readable for the server alone")
