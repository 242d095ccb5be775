"""A server's metrics, as it tells them over HTTP."""

import ipaddress
import math
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from recurra_client.cli.common import ANYBODY, Credentials
from recurra_client.cli.usererror import UserError

_TIMEOUT: Final = 5.0
Labels = Mapping[str, str]
Where = Callable[[Labels], bool]


def everywhere(_: Labels) -> bool:
    """All series of a metric."""
    return True


class Sample(NamedTuple):
    """One series."""

    labels: dict[str, str]
    value: float


class Scrape:
    """What a server told at a time (monotonic, in seconds)."""

    def __init__(self, at: float, series: dict[str, list[Sample]]) -> None:
        self.at = at
        self._series = series

    def of(self, name: str) -> list[Sample]:
        """The series of a metric."""
        return self._series.get(name, [])

    def total(self, name: str, where: Where = everywhere) -> float:
        """A gauge or counter, summed."""
        return sum(sample.value for sample in self.of(name) if where(sample.labels))

    def value(self, name: str, otherwise: float = math.nan) -> float:
        """A metric without labels."""
        return self.of(name)[0].value if self.of(name) else otherwise


def _here(host: str) -> bool:
    """Whether a host is this machine: what is sent there, nobody reads on the way."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _why(error: Exception) -> str:
    inner = getattr(error, "reason", None)
    why = inner if isinstance(inner, Exception) else error
    # With TLS 1.3 it is closed after the handshake: the alert that says why can be lost.
    if isinstance(why, ssl.SSLEOFError | ConnectionResetError) or "CERTIFICATE_REQUIRED" in str(why):
        return "it closed the connection; it may want a certificate (--tls-client-cert and --tls-client-key)"
    if isinstance(why, ssl.SSLError):
        return re.sub(r"^\[.*?\] | \(_ssl\.c:\d+\)$", "", str(why))  # OpenSSL's sentence without its numbers
    return getattr(why, "strerror", None) or str(why)


def _tls(credentials: Credentials) -> ssl.SSLContext:
    ours = (credentials.tls_ca, credentials.tls_client_cert, credentials.tls_client_key)
    files = [path for path in ours if path is not None]
    for path in files:
        path.read_bytes()  # whose error says which it was
    try:
        context = ssl.create_default_context(cafile=credentials.tls_ca)
        if credentials.tls_client_cert is not None:
            context.load_cert_chain(credentials.tls_client_cert, credentials.tls_client_key)
    except ssl.SSLError:
        names = ", ".join(map(str, files))
        raise UserError(f"cannot use {names}: for TLS they must be PEM files, a key that of its certificate") from None
    return context


def scrape(url: str, credentials: Credentials = ANYBODY) -> Scrape:
    """Ask a server for its metrics.

    Raises:
        UserError: It cannot be reached, wants to know who asks, or answers something else.
        OSError: A file of the credentials cannot be read.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"}:
        raise UserError(f"{url} is no URL of metrics, such as http://localhost:9464/metrics")
    request = urllib.request.Request(url)  # noqa: S310 - it is one of the two
    if (token := credentials.read_token()) and (parts.scheme == "https" or _here(parts.hostname or "")):
        request.add_unredirected_header("Authorization", f"Bearer {token}")  # for this server only
    tls = _tls(credentials)
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT, context=tls) as answer:  # noqa: S310 - likewise
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.UNAUTHORIZED:
            raise UserError(
                f"{url} needs a token with the role metrics (--token-file), sent over https or to this machine only"
            ) from None
        raise UserError(f"cannot get metrics from {url}: it answers {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot get metrics from {url}: {_why(error)}") from None
    series: dict[str, list[Sample]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series.setdefault(sample.name, []).append(Sample(sample.labels, sample.value))
    except ValueError:
        series = {}
    if "recurra_build_info" not in series:
        raise UserError(f"{url} answers, but not with the metrics of a Recurra server")
    return Scrape(time.monotonic(), series)
