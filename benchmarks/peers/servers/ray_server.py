"""Ray Serve: a bidirectional gRPC stream is one session, in the one replica it was routed to. No batching."""

import sys
import time

import numpy as np
import ray
from ray import serve
from ray.serve.config import gRPCOptions
from recurra.v1 import inference_pb2, tensor_pb2
from state import Sessions


@serve.deployment(num_replicas=1, max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.5})
class Step:
    """A step at a time."""

    def __init__(self, path):
        self._sessions = Sessions(path)

    async def StreamSteps(self, requests):
        """A session."""
        name, step = "", 0
        async for request in requests:
            name = request.open.session_id or name
            x = np.frombuffer(request.inputs[0].data, np.float32)
            y = self._sessions.step([name], [x])
            step += 1
            tensor = tensor_pb2.Tensor(name="y", dtype=1, shape=[1], data=y.tobytes())
            result = inference_pb2.StepResult(step=step, outputs=[tensor])
            yield inference_pb2.StreamStepsResponse(session_id=name, result=result)


if __name__ == "__main__":
    port, http_port, path = sys.argv[1:]
    ray.init(include_dashboard=False, num_cpus=2, log_to_driver=False)
    services = ["recurra.v1.inference_pb2_grpc.add_InferenceServiceServicer_to_server"]
    serve.start(
        grpc_options=gRPCOptions(port=int(port), grpc_servicer_functions=services),
        http_options={"port": int(http_port)},
    )
    serve.run(Step.bind(path), name="lstm")
    while True:
        time.sleep(3600)
