"""Encryption: who can connect, and certificates that change while the server runs."""

import socket
import ssl
import urllib.request
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from recurra.v1.models_pb2 import ListModelsRequest
from recurra_client import Client, UnavailableError, tls

from tests.security.conftest import refused
from tests.support.attacks import Attack
from tests.support.authority import Authority
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stubs


def list_models(target: str, credentials: grpc.ChannelCredentials | None) -> int:
    stubs = Stubs(target, credentials)
    with stubs.channel:
        return len(stubs.models.ListModels(ListModelsRequest(), timeout=20).models)


def serial_of(target: str) -> int:
    host, _, port = target.rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), 20) as plain, context.wrap_socket(plain) as encrypted:
        found = encrypted.getpeercert(binary_form=True)
    assert found is not None
    return x509.load_der_x509_certificate(found).serial_number


def wait_for(server: ServerProcess, words: str) -> None:
    while words not in server.output:
        server.new_output.wait(20)
        server.new_output.clear()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Of the servers here, whose certificates change."""
    return Authority(tmp_path_factory.mktemp("own"))


def test_a_certificate_is_replaced_without_a_restart(repository: Path, own: Authority, attack: Attack) -> None:
    with running_server(repository, *own.flags(), "--no-metrics", ready="gRPC on ") as server:
        assert "with TLS" in server.output
        first = serial_of(server.target)
        open_all_the_time = Stubs(server.target, own.credentials())
        open_all_the_time.models.ListModels(ListModelsRequest())
        second = own.renew()
        assert first != second
        assert serial_of(server.target) == second
        own.cert.write_text("half a certi")  # what cannot be used changes nothing
        assert serial_of(server.target) == second
        wait_for(server, "certificates_refused")
        own.renew()
        assert list_models(server.target, own.credentials()) == 2
        open_all_the_time.models.ListModels(ListModelsRequest())
        open_all_the_time.channel.close()
    attack("access file and keys", "a certificate that is replaced by half a file", "the old one stays")


def test_who_has_no_certificate_of_ours_cannot_connect(
    repository: Path, own: Authority, tmp_path: Path, attack: Attack
) -> None:
    clients_ca = tmp_path / "ca.pem"
    clients_ca.write_bytes(own.ca.read_bytes())
    flags = (*own.flags(), "--tls-client-ca", str(clients_ca))
    with running_server(repository, *flags, "--no-metrics", ready="gRPC on ") as server:
        gateway, others = own.client("gateway").credentials(), Authority(tmp_path / "foreign")
        connected = Stubs(server.target, gateway)
        assert len(connected.models.ListModels(ListModelsRequest()).models) == 2
        assert list_models(server.target, gateway) == 2
        foreign = others.client("gateway")
        foreign.ca = own.ca.read_bytes()
        for tried, credentials in {
            "no encryption": None,
            "no client certificate, where one is needed": own.credentials(),
            "a client certificate of another authority": foreign.credentials(),
        }.items():
            came_back = refused(lambda given=credentials: list_models(server.target, given))  # type: ignore[misc]
            assert came_back == "UNAVAILABLE"
            attack("gRPC port", tried, "the connection is closed")
        clients_ca.write_bytes(others.ca.read_bytes())
        assert list_models(server.target, foreign.credentials()) == 2
        assert refused(lambda: list_models(server.target, gateway)) == "UNAVAILABLE"
        attack("gRPC port", "a certificate whose authority was taken out of the file", "the connection is closed")
        assert len(connected.models.ListModels(ListModelsRequest()).models) == 2, "who was connected stays so"
        connected.channel.close()


def test_the_server_is_told_from_another_by_its_certificate(
    guarded: ServerProcess, tmp_path: Path, attack: Attack
) -> None:
    stranger = Authority(tmp_path)
    assert refused(lambda: list_models(guarded.target, stranger.credentials())) == "UNAVAILABLE"
    attack(
        "gRPC port",
        "another server in the place of ours (a client that trusts another authority)",
        "the client hangs up",
    )


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions_of_tls_are_refused(guarded: ServerProcess, version: ssl.TLSVersion, attack: Attack) -> None:
    host, _, port = guarded.target.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with socket.create_connection((host, int(port)), 20) as plain, pytest.raises((ssl.SSLError, OSError)):
        context.wrap_socket(plain).close()
    attack("gRPC port", "TLS 1.0 and 1.1", "the handshake fails")


async def test_a_client_is_told_why_it_cannot_connect(repository: Path, own: Authority, tmp_path: Path) -> None:
    async def told(target: str, ca: Path | None) -> str:
        with pytest.raises(UnavailableError) as caught:
            async with Client(target, reconnect=0, credentials=None if ca is None else tls(ca)) as client:
                await client.models()
        return str(caught.value)

    foreign = Authority(tmp_path / "foreign")
    with running_server(repository, "--no-metrics", ready="whoever can") as server:
        assert f"gRPC on {server.target} without encryption, for this machine only\n" in server.output
        assert "it does not speak TLS" in await told(server.target, own.ca)
    with running_server(repository, *own.flags(), "--no-metrics", ready="whoever can") as server:
        assert "it may want TLS" in await told(server.target, None)
        assert "not signed by anybody who is trusted here" in await told(server.target, foreign.ca)
    flags = (*own.flags(), "--tls-client-ca", str(own.ca))
    with running_server(repository, *flags, "--no-metrics", ready="whoever can") as server:
        assert "a certificate of the client" in await told(server.target, own.ca)
    with pytest.raises(ValueError, match="give both or neither"):
        tls(own.ca, own.cert)


def test_metrics_are_encrypted_with_the_same_certificate(repository: Path, own: Authority) -> None:
    with running_server(repository, *own.flags()) as server:
        assert server.metrics_url.startswith("https://")
        context = ssl.create_default_context(cafile=str(own.ca))
        with urllib.request.urlopen(server.metrics_url, context=context, timeout=20) as answer:  # noqa: S310
            assert b"recurra_steps_total" in answer.read()


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["--host", "0.0.0.0"], "--insecure"),  # noqa: S104
        (["--host", "::"], "--insecure"),
        (["--tls-cert", "cert.pem"], "needs both"),
        (["--tls-client-ca", "ca.pem"], "needs both"),
        (["--tls-cert", "absent.pem", "--tls-key", "absent.pem"], "absent.pem"),
        (["--access", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_server_that_would_not_be_as_safe_as_asked_for_does_not_start(
    repository: Path, flags: list[str], why: str, attack: Attack
) -> None:
    with pytest.raises(RuntimeError, match=why) as refusal:
        ServerProcess(repository, *flags)
    assert "Traceback" not in str(refusal.value)
    assert str(refusal.value).count("\nrecurra: ") == 1
    attack(
        "access file and keys",
        "files that are not there, TLS by halves, another address without TLS",
        "the server does not start",
    )


def test_a_key_of_another_certificate_is_refused_at_the_start(
    repository: Path, own: Authority, tmp_path: Path, attack: Attack
) -> None:
    other = Authority(tmp_path)
    with pytest.raises(RuntimeError, match="do not belong together"):
        ServerProcess(repository, "--tls-cert", str(own.cert), "--tls-key", str(other.key))
    attack("access file and keys", "a key that is not the certificate's", "the server does not start")


def test_without_encryption_the_server_says_so(repository: Path) -> None:
    with running_server(repository, "--host", "0.0.0.0", "--insecure") as server:  # noqa: S104
        assert "WITHOUT ENCRYPTION" in server.output
