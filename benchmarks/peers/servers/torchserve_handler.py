"""TorchServe with continuous sequence batching: it orders a sequence's steps and batches across sequences."""

import numpy as np
from state import Sessions


class Step:
    """A step of each sequence in the batch."""

    def __init__(self):
        self._sessions = None

    def initialize(self, context):
        """Load the model."""
        self._sessions = Sessions()

    def handle(self, data, context):
        """Called with one request of each of several sequences."""
        names = [context.get_sequence_id(i) for i in range(len(data))]
        for i, name in enumerate(names):
            if context.get_request_header(i, context.header_key_sequence_start) == "True":
                self._sessions.start(name)
        y = self._sessions.step(names, [np.frombuffer(bytes(row["data"]), np.float32) for row in data])
        return [row.tobytes() for row in y]
