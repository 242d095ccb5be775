"""What the protocol tells of a model: its tensors, how it is served, what it has done."""

import time

from recurra.openinference import model_config_pb2, open_inference_pb2

from recurra_server.driver import Driver
from recurra_server.engine.engine import Engine
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.signature import StateSpec, TensorSpec
from recurra_server.rpc.openinference.datatypes import NAMES, number_of
from recurra_server.telemetry.metrics import ServerMetrics

_PLATFORM = "onnxruntime_onnx"
_Metadata = open_inference_pb2.ModelMetadataResponse
_Sequences = model_config_pb2.ModelSequenceBatching
_Duration = open_inference_pb2.StatisticDuration
_MAX_INT32 = 2**31 - 1


def metadata(engine: Engine, model: ServedModel) -> _Metadata:
    """Say what a model takes and answers."""
    return _Metadata(
        name=model.name,
        versions=[other.version for other in engine.models() if other.name == model.name],
        platform=_PLATFORM,
        inputs=[_tensor(spec) for spec in model.signature.inputs],
        outputs=[_tensor(spec) for spec in model.signature.outputs],
    )


def config(engine: Engine, model: ServedModel) -> model_config_pb2.ModelConfig:
    """Say how a model is served. Only a model with states has `sequence_batching`."""
    signature, limits = model.signature, engine.limits
    message = model_config_pb2.ModelConfig(
        name=model.name,
        platform=_PLATFORM,
        backend="onnxruntime",
        max_batch_size=1,
        input=[
            model_config_pb2.ModelInput(name=spec.name, data_type=number_of(spec.dtype), dims=spec.dims)
            for spec in signature.inputs
        ],
        output=[
            model_config_pb2.ModelOutput(name=spec.name, data_type=number_of(spec.dtype), dims=spec.dims)
            for spec in signature.outputs
        ],
        default_model_filename="model.onnx",
        model_transaction_policy=model_config_pb2.ModelTransactionPolicy(decoupled=False),
    )
    if signature.states:
        sequences = message.sequence_batching
        sequences.max_sequence_idle_microseconds = round(limits.default_idle_timeout * 1e6)
        sequences.oldest.max_candidate_sequences = min(limits.max_sessions, _MAX_INT32)
        sequences.state.extend(_state(spec) for spec in signature.states)
    for name, value in (
        ("version", model.version),
        ("digest", model.digest),
        ("max_model_batch", str(model.max_batch_size)),
    ):
        message.parameters[name].string_value = value
    return message


def statistics(driver: Driver, metrics: ServerMetrics, model: ServedModel) -> open_inference_pb2.ModelStatistics:
    """Say what a model has done: the numbers that Prometheus is told."""
    totals = metrics.timings.totals(model)
    failed = sum(
        count for outcome, count in model.turns.outcomes.items() if outcome not in ("ok", "replayed", "cancelled")
    )
    since = None if totals.last is None else driver.clock() - totals.last
    return open_inference_pb2.ModelStatistics(
        name=model.name,
        version=model.version,
        last_inference=0 if since is None else round((time.time() - since) * 1e3),
        inference_count=model.applied_steps,
        execution_count=totals.batches,
        inference_stats=open_inference_pb2.InferStatistics(
            success=_duration(totals.applied, totals.seconds),
            fail=_Duration(count=failed),
            queue=_duration(totals.applied, totals.queue),
            compute_input=_duration(totals.applied, 0),
            compute_infer=_duration(totals.applied, totals.compute),
            compute_output=_duration(totals.applied, 0),
        ),
    )


def _tensor(spec: TensorSpec) -> _Metadata.TensorMetadata:
    return _Metadata.TensorMetadata(name=spec.name, datatype=NAMES[spec.dtype], shape=(-1, *spec.dims))


def _state(spec: StateSpec) -> _Sequences.State:
    message = _Sequences.State(
        input_name=spec.input_name, output_name=spec.output_name, data_type=number_of(spec.dtype), dims=spec.dims
    )
    if spec.initial == 0:
        message.initial_state.add(data_type=number_of(spec.dtype), dims=spec.dims, zero_data=True, name="zeros")
    return message


def _duration(count: int, seconds: float) -> _Duration:
    return _Duration(count=count, ns=round(seconds * 1e9))
