"""What every peer needs and none has: the model in ONNX Runtime, and a dict of (h, c) by session.

Runs in the environment of each peer: needs numpy and onnxruntime alone.
"""

import os

import numpy as np
import onnxruntime


class Sessions:
    """Steps of sessions, batched as they are given."""

    def __init__(self, path=None):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = path or os.environ["BENCH_MODEL"]
        self._run = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run
        self._states = {}
        self._zero = np.zeros((1, 1, 128), np.float32)

    def start(self, session):
        """Forget what a session has been through."""
        self._states.pop(session, None)

    def step(self, sessions, rows):
        """Apply one step x [16] to each of several sessions: y [B, 1]."""
        zero = (self._zero, self._zero)
        states = [self._states.get(session, zero) for session in sessions]
        x = np.asarray(rows, np.float32).reshape(len(sessions), 1, 16)
        if len(states) == 1:
            h, c = states[0]
        else:
            h, c = (np.concatenate(parts, axis=1) for parts in zip(*states, strict=True))
        y, h, c = self._run(None, {"x": x, "h_0": h, "c_0": c})
        for i, session in enumerate(sessions):
            self._states[session] = (h[:, i : i + 1], c[:, i : i + 1])
        return y[:, 0]
