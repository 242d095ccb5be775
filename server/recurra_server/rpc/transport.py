"""How gRPC is run here: its threads, the event loop that it wakes, its limits.

This knows more of grpc.aio than its documentation tells. Where a release of gRPC is otherwise than described here,
all goes on, only slower.
"""

import asyncio
import fcntl
import os
import resource
import socket
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import grpc
import uvloop

from recurra_server.security.bounds import Bounds
from recurra_server.security.certificates import Certificates, Pems


def begin_as_grpc_needs() -> None:
    """Begin this program anew with what gRPC is told by the environment. It reads that when it is loaded.

    * Its sockets are read on the thread that tells grpc.aio of it. gRPC has a pool of threads that read, and one more
      that passes on what they have read: two threads are woken for each message, where one is enough.
      GRPC_EXPERIMENTS, if it is set, decides instead.
    * It does nothing where this process forks. It would stop its threads and begin them again, in the child too; but
      a child of ours only becomes another program, and now and then gets stuck before that, and with it the event
      loop, which waits for it (https://github.com/grpc/grpc/issues/22624).
    """
    needed = {"GRPC_EXPERIMENTS": "-event_engine_listener"} | os.environ | {"GRPC_ENABLE_FORK_SUPPORT": "0"}
    if needed != os.environ:
        os.execve(sys.executable, sys.orig_argv, needed)  # noqa: S606 - itself


def allow_many_connections() -> None:
    """Raise the number of files that this process may open, each connection being one, to the most that it may ask for.

    It is often 1,024. Where it is used up, gRPC leaves new connections unaccepted and says nothing: the kernel has
    answered them, so their callers wait for ever (https://github.com/grpc/grpc/issues/20418).
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop for a grpc.aio server."""
    return _Loop()


class _Loop(uvloop.Loop):
    """uvloop, woken once for all that gRPC has to tell.

    gRPC's thread puts each event (a message has come, a message was sent) into a queue and writes a byte to a
    socket. grpc.aio's reader of this socket takes one byte, and then all events of the queue. Under load the bytes
    that it leaves wake the loop again and again for nothing: a fifth of the server's time. So they are taken here.
    """

    def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
        """As any event loop, but for gRPC's socket."""
        if isinstance(fd, socket.socket) and "PollerCompletionQueue" in repr(callback):
            callback = _take_bytes_before(fd, callback)
        super().add_reader(fd, callback, *args)


def _take_bytes_before(sock: socket.socket, callback: Callable[..., Any]) -> Callable[..., None]:
    """Call back with one byte in the socket. What the others tell is in the queue already, so nothing is missed."""
    pending = bytearray(4)
    ioctl, count, recv, fileno = fcntl.ioctl, termios.FIONREAD, sock.recv, sock.fileno()
    value = memoryview(pending).cast("i")

    def call(*args: Any) -> None:
        ioctl(fileno, count, pending)
        if value[0] > 1:
            recv(value[0] - 1)
        callback(*args)

    return call


def options(bounds: Bounds, *, max_pending: int, share_port: bool, channelz: bool = False) -> list[tuple[str, int]]:
    """The options of the gRPC server.

    Args:
        bounds: What connections may take.
        max_pending: Calls that may wait to be begun.
        share_port: Whether other servers may listen on the port; the kernel then gives each connection to one of them.
        channelz: Whether gRPC keeps account of its connections, for the channelz service.
    """
    header, patience = bounds.max_header_kb << 10, _milliseconds(min(bounds.keepalive, 20.0))
    optional = [
        ("grpc.max_connection_idle_ms", _milliseconds(bounds.max_connection_idle)),
        ("grpc.max_connection_age_ms", _milliseconds(bounds.max_connection_age)),
    ]
    return [
        ("grpc.max_receive_message_length", bounds.max_message_mb << 20),
        ("grpc.max_send_message_length", -1),
        # Between the two a call would be refused at random.
        ("grpc.max_metadata_size", header),
        ("grpc.absolute_max_metadata_size", header),
        ("grpc.max_allowed_incoming_connections", bounds.max_connections),
        ("grpc.max_concurrent_streams", bounds.max_streams_per_connection),
        ("grpc.server_handshake_timeout_ms", _milliseconds(bounds.handshake_timeout)),
        # Not by default: a second server on the port would take half of the calls in silence.
        ("grpc.so_reuseport", int(share_port)),
        ("grpc.enable_channelz", int(channelz)),
        # Bursts wait in the engine's queue, whose bound is told to callers; the core's own would drop them.
        ("grpc.server.max_pending_requests", max_pending),
        ("grpc.server.max_pending_requests_hard_limit", 2 * max_pending),
        # Callers keep idle streams alive with pings, but no oftener than this.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", _milliseconds(bounds.keepalive)),
        ("grpc.keepalive_timeout_ms", patience),
        ("grpc.http2.ping_timeout_ms", patience),  # a minute otherwise, whatever the one above says
        ("grpc.max_connection_age_grace_ms", _milliseconds(min(bounds.max_connection_age, 60.0))),
        *((name, value) for name, value in optional if value),
    ]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def credentials(certificates: Certificates) -> grpc.ServerCredentials:
    """Certificates for gRPC, which asks for them anew with each connection."""

    def configuration(pems: Pems) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.chain)], pems.client_ca)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        pems = certificates.changed()
        return None if pems is None else configuration(pems)

    return grpc.dynamic_ssl_server_credentials(
        configuration(certificates.pems),
        changed,  # type: ignore[arg-type]  # None: as before
        require_client_authentication=certificates.mutual,
    )
