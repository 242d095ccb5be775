"""MLServer: a ModelStreamInfer stream is one session; no batching across streams."""

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from state import Sessions


class Step(MLModel):
    """A step at a time."""

    async def load(self):
        """Load the model."""
        self._sessions = Sessions()
        return True

    async def predict_stream(self, payloads):
        """A session."""
        session = object()
        try:
            async for payload in payloads:
                x = NumpyCodec.decode_input(payload.inputs[0])
                y = self._sessions.step([session], [np.asarray(x, np.float32)])
                output = NumpyCodec.encode_output("y", y)
                yield InferenceResponse(model_name=self.name, outputs=[output])
        finally:
            self._sessions.start(session)
