"""mosec: a Rust front that batches, one Python worker that keeps the states."""

import numpy as np
from mosec import Server, Worker
from state import Sessions


class Step(Worker):
    """A step of each session in the batch."""

    def __init__(self):
        super().__init__()
        self._sessions = Sessions()

    def deserialize(self, data):
        """Raw bytes."""
        return data

    def serialize(self, data):
        """Raw bytes."""
        return data

    def forward(self, data):
        """Called with up to 64 requests."""
        names = [bytes(body[:8]) for body in data]
        y = self._sessions.step(names, [np.frombuffer(body, np.float32, offset=8) for body in data])
        return [row.tobytes() for row in y]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Step, num=1, max_batch_size=64, max_wait_time=1)
    server.run()
