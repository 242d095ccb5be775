"""Asks the server of this machine whether it is ready: the image's health check.

It needs no more than the server's environment says. Who answers is not checked, as nobody else listens there; where
clients need a certificate, it shows the server's own, unless it is told of another.
"""

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

_SECONDS = 4.0


def why_not(environment: Mapping[str, str]) -> str:
    """What keeps a server from being ready; empty where it is.

    Args:
        environment: The variables of `recurra serve`; and RECURRA_TLS_CLIENT_CERT and RECURRA_TLS_CLIENT_KEY, a
            certificate to show to it.
    """
    port = int(environment.get("RECURRA_METRICS_PORT", "9464"))
    try:
        connection = http.client.HTTPConnection("localhost", port, timeout=_SECONDS)
        if "RECURRA_TLS_CERT" in environment:
            connection = http.client.HTTPSConnection(
                "localhost", port, timeout=_SECONDS, context=_encryption(environment)
            )
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        said = answer.read().decode().strip()
    except (OSError, http.client.HTTPException) as error:
        return f"port {port}: {error}"
    return "" if answer.status == http.HTTPStatus.OK else said


def _encryption(environment: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    shown = "RECURRA_TLS_CLIENT" if "RECURRA_TLS_CLIENT_CERT" in environment else "RECURRA_TLS"
    context.load_cert_chain(environment[f"{shown}_CERT"], environment[f"{shown}_KEY"])
    return context


if __name__ == "__main__":
    sys.exit(why_not(os.environ) or None)  # a text goes to stderr, and ends it with 1
