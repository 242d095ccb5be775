"""The gRPC server with everything that it answers."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from recurra.openinference import open_inference_pb2, open_inference_pb2_grpc
from recurra.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
)

from recurra_server.driver import Driver
from recurra_server.rpc import transport
from recurra_server.rpc.access import AccessInterceptor
from recurra_server.rpc.channelz import ChannelzServicer
from recurra_server.rpc.deserializers import SafeDeserializers
from recurra_server.rpc.health import HealthServicer
from recurra_server.rpc.inference import InferenceServicer
from recurra_server.rpc.models import Catalog, ModelsServicer
from recurra_server.rpc.open_calls import OpenCalls
from recurra_server.rpc.openinference.servicer import OpenInferenceServicer
from recurra_server.rpc.reflection import ReflectionServicer
from recurra_server.rpc.sessions import Drain, SessionsServicer
from recurra_server.rpc.stream_base import OpenStreams
from recurra_server.rpc.traced import TraceReader
from recurra_server.security.access import Access
from recurra_server.settings import Settings
from recurra_server.telemetry.metrics import EdgeCounts, ServerMetrics
from recurra_server.tracecontext import Trace

SERVICES: Final = [
    file.services_by_name[name].full_name
    for file, name in (
        (models_pb2.DESCRIPTOR, "ModelsService"),
        (sessions_pb2.DESCRIPTOR, "SessionsService"),
        (inference_pb2.DESCRIPTOR, "InferenceService"),
        (open_inference_pb2.DESCRIPTOR, "GRPCInferenceService"),
    )
]
"""The full names of the two APIs' services."""


def build_server(
    settings: Settings,
    *,
    driver: Driver,
    edge: EdgeCounts,
    streams: OpenStreams,
    metrics: ServerMetrics,
    catalog: Catalog,
    health: HealthServicer,
    access: Access | None,
    read_trace: Callable[[Mapping[str, str]], Trace] | None,
    drain: Drain | None,
    share_port: bool,
) -> grpc.aio.Server:
    """A server that does not listen yet.

    Args:
        settings: How to serve.
        driver: What runs the steps.
        edge: Counts what the servicers see.
        streams: Knows the streams that are open.
        metrics: What the Open Inference Protocol tells its statistics from.
        catalog: Loads and unloads models when asked to.
        health: Answers for the health of the services and models.
        access: Who may call; None where everybody may.
        read_trace: Finds in a call's metadata what it is part of; None where no traces are kept.
        drain: What a call can have done; None where it cannot.
        share_port: Whether other processes listen on the same port.
    """
    interceptors: list[grpc.aio.ServerInterceptor] = []
    if read_trace is not None:
        interceptors.append(TraceReader(read_trace))
    if access is not None:
        interceptors.append(AccessInterceptor(access, edge))
    bounds, window = settings.bounds, settings.stream_window
    options = transport.options(
        bounds, max_pending=2 * settings.limits.max_queue, share_port=share_port, channelz=settings.channelz
    )
    server = grpc.aio.server(interceptors=interceptors, options=options)
    calls: Any = SafeDeserializers(server, OpenCalls(edge, bounds))
    models_pb2_grpc.add_ModelsServiceServicer_to_server(ModelsServicer(driver.engine, edge, catalog), calls)
    sessions_pb2_grpc.add_SessionsServiceServicer_to_server(SessionsServicer(driver, edge, drain), calls)
    inference = InferenceServicer(driver, edge, streams, stream_window=window, bounds=bounds)
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(inference, calls)
    open_inference = OpenInferenceServicer(driver, edge, streams, metrics, catalog, stream_window=window, bounds=bounds)
    driver.on_forget += [metrics.timings.forget, inference.forget, open_inference.forget]
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(open_inference, calls)
    health_pb2_grpc.add_HealthServicer_to_server(health, calls)
    if settings.channelz:
        channelz_pb2_grpc.add_ChannelzServicer_to_server(ChannelzServicer(edge), calls)
    if settings.reflection:
        names = [*SERVICES, HEALTH, reflection.SERVICE_NAME]
        names += [channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name] * settings.channelz
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(ReflectionServicer(names, edge, streams), calls)
    return server
