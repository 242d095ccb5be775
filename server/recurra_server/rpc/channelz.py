"""grpc.channelz: gRPC's own account of connections and streams, for tools that look into them."""

from typing import Any

import grpc
from grpc_channelz.v1 import channelz

from recurra_server.rpc.status import guarded
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]


def _behind_guard(name: str) -> Any:
    method = getattr(channelz.aio.ChannelzServicer, name)

    @guarded
    async def call(_: object, request: Any, context: _Context) -> Any:
        return await method(request, context)

    return call


class ChannelzServicer(channelz.aio.ChannelzServicer):  # type: ignore[misc]
    """The one of grpcio-channelz, whose calls are guarded as all are."""

    def __init__(self, edge: EdgeCounts) -> None:
        self.edge = edge

    GetTopChannels, GetServers, GetServer, GetServerSockets, GetChannel, GetSubchannel, GetSocket = map(
        _behind_guard,
        ("GetTopChannels", "GetServers", "GetServer", "GetServerSockets", "GetChannel", "GetSubchannel", "GetSocket"),
    )
