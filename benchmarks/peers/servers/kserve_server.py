"""KServe's Python model server: a call a step; the request's `sequence_id` names the session. No batching."""

import sys

import numpy as np
from kserve import InferOutput, InferResponse, Model, ModelServer
from state import Sessions


class Step(Model):
    """A step at a time."""

    def __init__(self):
        super().__init__("lstm")
        self._sessions = Sessions()
        self.ready = True

    def load(self):
        """Nothing is left to load."""
        return True

    async def predict(self, payload, headers=None, response_headers=None):
        """A step."""
        parameters = payload.parameters
        session = getattr(parameters["sequence_id"], "int64_param", parameters["sequence_id"])
        x = payload.inputs[0].as_numpy()
        y = self._sessions.step([session], [x])
        output = InferOutput("y", [1, 1], "FP32")
        output.set_data_from_numpy(np.ascontiguousarray(y), binary_data=True)
        return InferResponse(response_id=payload.id or "", model_name="lstm", infer_outputs=[output])


if __name__ == "__main__":
    ModelServer(grpc_port=int(sys.argv[1]), http_port=int(sys.argv[2]), workers=1).start([Step()])
