"""Generation: a model that goes on from its own outputs."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from recurra.v1 import inference_pb2

from recurra_client.codec import Codec, Inputs
from recurra_client.connection import Connection, route_by
from recurra_client.errors import StepGapError, rpc_errors
from recurra_client.results import Generated
from recurra_client.session import Session
from recurra_client.tensors import to_array


async def generate_anew(
    connection: Connection, codec: Codec, request: inference_pb2.GenerateRequest, x: Inputs
) -> AsyncGenerator[Generated]:
    """Generate from a model's beginning, without a session; see `Client.generate`."""
    request.outputs.extend(codec.wanted)
    request.inputs.extend(codec.sequence(x)[0])
    async with aclosing(_answers(connection, request, named=isinstance(x, Mapping))) as answers:
        async for generated in answers:
            yield generated


async def generate_in_session(
    connection: Connection, session: Session, request: inference_pb2.GenerateRequest, x: Inputs
) -> AsyncGenerator[Generated]:
    """Generate from where a session stands, and advance it; see `Client.generate`."""
    async with session.exclusively() as (codec, delivery, request.after_step):
        request.session_id = session.id
        request.outputs.extend(codec.wanted)
        request.inputs.extend(codec.sequence(x)[0])
        named, step, ended = isinstance(x, Mapping), 0, False
        try:
            while not ended:
                # Closed here, so that the call has been cancelled before anything else of the session is sent.
                answering = aclosing(_answers(connection, request, named=named, route=session.route))
                try:
                    async with answering as answers:
                        async for generated in answers:
                            step = generated.step
                            yield generated
                    ended = True
                except StepGapError as gap:  # before anything was generated
                    await delivery.once.bring(gap)
        finally:
            if step:
                delivery.once.changed(step, surely=ended)


async def _answers(
    connection: Connection, request: inference_pb2.GenerateRequest, *, named: bool, route: str = ""
) -> AsyncGenerator[Generated]:
    with rpc_errors():
        call = connection.inference.Generate(request, timeout=connection.timeout, metadata=route_by(route))
        try:
            async for answer in call:
                outputs = {tensor.name: to_array(tensor) for tensor in answer.result.outputs}
                output = outputs if named else next(iter(outputs.values()))
                yield Generated(output, to_array(answer.next_input), answer.result.step)
        finally:
            call.cancel()  # the caller may have had enough
