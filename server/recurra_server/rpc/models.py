"""ModelsService: what is served and how to call it."""

from typing import Any, NamedTuple, Protocol

import grpc
from recurra.v1 import models_pb2, models_pb2_grpc

from recurra_server.engine.engine import Engine
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.signature import TensorSpec
from recurra_server.rpc.status import guarded
from recurra_server.rpc.tensors import DTYPE_NUMBERS
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]


ModelKey = tuple[str, str, str]
"""Name, version and digest."""


class Unloaded(NamedTuple):
    """Versions that are served to no new sessions any more, and the sessions that still are on them."""

    keys: list[ModelKey]
    sessions: int

    @property
    def versions(self) -> list[str]:
        """Their versions."""
        return [version for _, version, _ in self.keys]


class Catalog(Protocol):
    """Loads and unloads models; see `recurra_server.catalog`."""

    async def load(self, name: str, version: str, digest: str) -> tuple[ServedModel, bool]:
        """Load a version; tell whether that changed anything."""
        ...

    async def unload(self, name: str, version: str) -> Unloaded:
        """Unload a version, or all."""
        ...


class ModelsServicer(models_pb2_grpc.ModelsServiceServicer):
    """Answers from the engine's list of models, and has the catalog change it."""

    def __init__(self, engine: Engine, edge: EdgeCounts, catalog: Catalog) -> None:
        self.edge = edge
        self._engine = engine
        self._catalog = catalog

    @guarded
    async def ListModels(
        self, request: models_pb2.ListModelsRequest, context: _Context
    ) -> models_pb2.ListModelsResponse:
        """List every served version."""
        return models_pb2.ListModelsResponse(models=[self._describe(model) for model in self._engine.models()])

    @guarded
    async def GetModel(self, request: models_pb2.GetModelRequest, context: _Context) -> models_pb2.GetModelResponse:
        """Describe one version."""
        model = self._engine.model(request.name, request.version, request.digest)
        return models_pb2.GetModelResponse(model=self._describe(model))

    @guarded
    async def LoadModel(self, request: models_pb2.LoadModelRequest, context: _Context) -> models_pb2.LoadModelResponse:
        """Load a version from the repository."""
        model, changed = await self._catalog.load(request.name, request.version, request.digest)
        return models_pb2.LoadModelResponse(model=self._describe(model), changed=changed)

    @guarded
    async def UnloadModel(
        self, request: models_pb2.UnloadModelRequest, context: _Context
    ) -> models_pb2.UnloadModelResponse:
        """Serve a version to no new sessions."""
        unloaded = await self._catalog.unload(request.name, request.version)
        return models_pb2.UnloadModelResponse(versions=unloaded.versions, sessions=unloaded.sessions)

    def _describe(self, model: ServedModel) -> models_pb2.Model:
        signature = model.signature
        message = models_pb2.Model(
            name=model.name,
            version=model.version,
            latest=self._engine.shelf.is_latest(model),
            digest=model.digest,
            description=signature.description,
            inputs=[_tensor(spec) for spec in signature.inputs],
            outputs=[_tensor(spec) for spec in signature.outputs],
            states=[
                models_pb2.StateSpec(
                    input_name=state.input_name,
                    output_name=state.output_name,
                    dtype=DTYPE_NUMBERS[state.dtype],
                    dims=state.dims,
                    initial=0.0 if isinstance(state.initial, list) else state.initial,
                    initial_differs=isinstance(state.initial, list),
                )
                for state in signature.states
            ],
            constants=[
                models_pb2.ConstantSpec(
                    name=spec.name,
                    dtype=DTYPE_NUMBERS[spec.dtype],
                    dims=spec.dims,
                    per_session=spec.per_session,
                    required=spec.per_session and spec.value is None,
                )
                for spec in signature.constants
            ],
            state_bytes=signature.state_bytes,
            metrics=model.metrics,
            max_batch_size=model.max_batch_size,
        )
        if signature.step_seconds is not None:
            message.step_period.FromNanoseconds(round(signature.step_seconds * 1e9))
        if signature.feedback is not None:
            feedback = signature.feedback
            message.feedback.CopyFrom(
                models_pb2.Feedback(output=feedback.output, input=feedback.input, sampled=feedback.sampled)
            )
        return message


def _tensor(spec: TensorSpec) -> models_pb2.TensorSpec:
    return models_pb2.TensorSpec(
        name=spec.name,
        dtype=DTYPE_NUMBERS[spec.dtype],
        dims=spec.dims,
        labels=spec.labels,
        units=spec.units,
        kind=spec.kind,
        context=spec.context,
        optional=spec.optional,
    )
