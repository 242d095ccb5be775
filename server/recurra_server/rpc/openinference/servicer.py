"""GRPCInferenceService: the calls of the Open Inference Protocol."""

import asyncio
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any, Final

import grpc
from recurra.openinference import open_inference_pb2 as pb
from recurra.openinference import open_inference_pb2_grpc

from recurra_server.driver import Driver
from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import EngineError, ModelNotFoundError, UnsupportedError
from recurra_server.engine.served_model import ServedModel
from recurra_server.rpc.models import Catalog
from recurra_server.rpc.opened import Opened
from recurra_server.rpc.openinference import describe
from recurra_server.rpc.openinference.infer_stream import InferStream
from recurra_server.rpc.openinference.requests import Inference, read_request
from recurra_server.rpc.openinference.sequences import Sequences
from recurra_server.rpc.status import guarded
from recurra_server.rpc.stream_base import OpenStreams
from recurra_server.security.bounds import Bounds
from recurra_server.security.identity import caller_account
from recurra_server.telemetry.metrics import EdgeCounts, ServerMetrics
from recurra_server.tracecontext import TRACE

_Context = grpc.aio.ServicerContext[Any, Any]
_EXTENSIONS: Final = ("sequence", "model_configuration", "model_repository", "statistics")


class OpenInferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Decodes, awaits the engine, encodes."""

    def __init__(
        self,
        driver: Driver,
        edge: EdgeCounts,
        streams: OpenStreams,
        metrics: ServerMetrics,
        catalog: Catalog,
        *,
        stream_window: int,
        bounds: Bounds,
    ) -> None:
        self.edge = edge
        self._driver = driver
        self._engine = driver.engine
        self._streams = streams
        self._metrics = metrics
        self._catalog = catalog
        self._stream_window = stream_window
        self._bounds = bounds
        self._sequences = Sequences(driver)

    def forget(self, model: ServedModel) -> None:
        """A model is not served any more and has no sequences left."""
        self._sequences.forget(model)

    # --- health and description ------------------------------------------------------------

    @guarded
    async def ServerLive(self, request: pb.ServerLiveRequest, context: _Context) -> pb.ServerLiveResponse:
        """Answer."""
        return pb.ServerLiveResponse(live=True)

    @guarded
    async def ServerReady(self, request: pb.ServerReadyRequest, context: _Context) -> pb.ServerReadyResponse:
        """Tell whether sequences can begin."""
        return pb.ServerReadyResponse(ready=not self._engine.draining)

    @guarded
    async def ModelReady(self, request: pb.ModelReadyRequest, context: _Context) -> pb.ModelReadyResponse:
        """Tell whether a model is served."""
        try:
            self._engine.model(request.name, request.version)
        except ModelNotFoundError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=not self._engine.draining)

    @guarded
    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: _Context) -> pb.ServerMetadataResponse:
        """Say which server this is."""
        return pb.ServerMetadataResponse(name="recurra", version=version("recurra"), extensions=_EXTENSIONS)

    @guarded
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: _Context) -> pb.ModelMetadataResponse:
        """Say what a model takes and answers."""
        return describe.metadata(self._engine, self._engine.model(request.name, request.version))

    @guarded
    async def ModelConfig(self, request: pb.ModelConfigRequest, context: _Context) -> pb.ModelConfigResponse:
        """Say how a model is served."""
        model = self._engine.model(request.name, request.version)
        return pb.ModelConfigResponse(config=describe.config(self._engine, model))

    @guarded
    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: _Context
    ) -> pb.ModelStatisticsResponse:
        """Count what models have done."""
        return pb.ModelStatisticsResponse(
            model_stats=[
                describe.statistics(self._driver, self._metrics, model)
                for model in self._chosen(request.name, request.version)
            ]
        )

    # --- inference -------------------------------------------------------------------------

    @guarded
    async def ModelInfer(self, request: pb.ModelInferRequest, context: _Context) -> pb.ModelInferResponse:
        """Apply one step or chunk."""
        call, now = _Call(caller_account()), self._driver.clock()
        inference = read_request(request, call, now)
        left = context.time_remaining()
        if left is not None:
            inference.deadline = min(inference.deadline, now + left)
        try:
            if call.account is not None:
                call.account.spend(0, now)
            self._sequences.take(inference, request)
            if call.account is not None:
                call.account.charge(inference.count, now)
            await call.told
        except EngineError as error:
            raise inference.explain(error) from None
        finally:
            call.end()
        if inference.error is not None:
            raise inference.explain(inference.error)
        return inference.codec.write(inference.id, inference.outputs, inference.lead, inference.choice)

    async def ModelStreamInfer(self, request_iterator: Any, context: _Context) -> None:  # type: ignore[override]
        """Apply steps as they come."""
        stream = InferStream(
            self._driver,
            self._sequences,
            self.edge,
            context,
            self._stream_window,
            caller_account(),
            max_sessions=self._bounds.max_sessions_per_stream,
        )
        await self._streams.serve(stream, context)

    # --- the model repository --------------------------------------------------------------

    @guarded
    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: _Context
    ) -> pb.RepositoryIndexResponse:
        """List the models."""
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(name=model.name, version=model.version, state="READY")
                for model in self._engine.models()
            ]
        )

    @guarded
    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: _Context
    ) -> pb.RepositoryModelLoadResponse:
        """Load the latest version in the repository, or load it anew where its files have changed."""
        if request.parameters:
            raise UnsupportedError("a model is loaded as its files are: without parameters")
        await self._catalog.load(request.model_name, "", "")
        return pb.RepositoryModelLoadResponse()

    @guarded
    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: _Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Begin no sequences any more on any version; those that have begun go on until they end."""
        await self._catalog.unload(request.model_name, "")
        return pb.RepositoryModelUnloadResponse()

    def _chosen(self, name: str, version: str) -> list[ServedModel]:
        """All versions of all models, of one model, or one version."""
        if not name:
            return self._engine.models()
        newest = self._engine.model(name, version)
        return [newest] if version else [model for model in self._engine.models() if model.name == name]


class _Call:
    """A coroutine that waits for one answer."""

    def __init__(self, account: Account | None) -> None:
        self.account = account
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = False
        self.trace = TRACE.get()
        self.leases: set[ExitStack] = set()
        self.opened: Opened | None = None

    def answered(self, step: Inference) -> None:
        """Called by the engine: wake it, unless it has been cancelled and has not come to know yet."""
        if not self.told.done():
            self.told.set_result(None)
        if step.finish is not None:
            step.finish(step)

    def end(self) -> None:
        """Wait no more."""
        self.gone = True
        for lease in tuple(self.leases):
            lease.close()
