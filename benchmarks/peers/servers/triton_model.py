"""Triton's Python backend under its sequence batcher: the correlation id names the session."""

import numpy as np
import triton_python_backend_utils as pb_utils
from state import Sessions

_START = 1  # TRITONSERVER_REQUEST_FLAG_SEQUENCE_START


class TritonPythonModel:
    """A step of each sequence in the batch."""

    def initialize(self, args):
        """Load the model."""
        self._sessions = Sessions()

    def execute(self, requests):
        """Called with one request of each of several sequences."""
        names = [request.correlation_id() for request in requests]
        for name, request in zip(names, requests, strict=True):
            if request.flags() & _START:
                self._sessions.start(name)
        rows = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        y = self._sessions.step(names, rows)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", np.ascontiguousarray(y[i : i + 1]))])
            for i in range(len(requests))
        ]
