"""What is too many of something is refused by its number, before it is copied: a small message may hold millions."""

import tracemalloc
from collections.abc import Callable

import pytest
from recurra.openinference import open_inference_pb2 as pb
from recurra.v1.inference_pb2 import StepBatchRequest, StepRequest
from recurra.v1.tensor_pb2 import Tensor
from recurra_server.driver import Driver
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import EngineError
from recurra_server.engine.limits import Limits
from recurra_server.engine.served_model import ServedModel
from recurra_server.rpc.batches import step_batch
from recurra_server.rpc.openinference.codec import Codec
from recurra_server.rpc.tensors import decode_states, decode_steps
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support.attacks import Attack

MANY = 300_000
Use = Callable[[Driver, ServedModel], object]


def batch(**fields: object) -> Use:
    request = StepBatchRequest(**fields)  # type: ignore[arg-type]
    return lambda driver, _: step_batch(driver, request, float("inf"), None).send(None)


def outputs() -> Use:
    request = StepRequest(outputs=["y"] * MANY)
    return lambda _, model: model.choose(request.outputs)


def open_inference_outputs() -> Use:
    request = pb.ModelInferRequest.FromString(b"\x32\x00" * MANY)  # so many outputs without a name
    return lambda _, model: Codec(model, 100).choose(request.outputs)


def axes() -> Use:
    tensor = Tensor(shape=[1] * MANY, data=bytes(4))
    return lambda _, model: decode_steps([tensor], model.signature, 100)


def axes_of_states() -> Use:
    tensor = Tensor(shape=[1] * MANY, data=bytes(4))
    return lambda _, model: decode_states([tensor], model.signature.kept)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(batch(session_ids=[""] * MANY), id="rows"),
        pytest.param(batch(session_ids=["a"], steps=[1] * MANY), id="step numbers"),
        pytest.param(outputs(), id="outputs"),
        pytest.param(open_inference_outputs(), id="outputs of the Open Inference Protocol"),
        pytest.param(axes(), id="axes"),
        pytest.param(axes_of_states(), id="axes of states"),
    ],
)
async def test_too_many_are_refused_before_they_are_copied(
    runtimes: dict[str, OnnxRuntime], use: Use, attack: Attack, request: pytest.FixtureRequest
) -> None:
    runtime, driver = runtimes["counter"], Driver(Engine(Limits()))
    model = driver.serve(ServedModel("counter", "1", "", runtime.signature, runtime, driver.engine.limits))
    tracemalloc.start()
    try:
        with pytest.raises(EngineError):
            use(driver, model)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < MANY
    attack("gRPC port", f"a message with too many {request.node.callspec.id}", "refused before they are copied")
