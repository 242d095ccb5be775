"""Graphs such as others export them, with nothing about Recurra inside; a model.yaml says what they are.

Each is an exact stand-in for a kind of model that is met in the wild: small, and every slip shows in its answers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Foreign:
    """A graph in ONNX's textual syntax, and its model.yaml."""

    graph: str
    description: str

    def publish(self, root: Path, name: str, version: str = "1") -> Path:
        """Put it into a repository."""
        path = root / name / version / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{self.graph}')
        onnx.checker.check_model(model)
        onnx.save(model, path)
        path.with_name("model.yaml").write_text(f"format: 1\n{self.description}")
        return path


# The states' names say nothing, and each has its batch axis elsewhere; the state is no vector.
STATES = Foreign(
    """
    g (float[B, 2] x, float[2, B] foo, float[B, 2, 1] p, double[1, B] n)
      => (float[B, 2] y, double[1, B] z, float[2, B] bar, float[B, 2, 1] q)
      <float[1] half = {0.5}, int64[1] two = {2}, double[1] one = {1}> {
        xt = Transpose <perm = [1, 0]> (x)
        kept = Mul (foo, half)
        bar = Add (kept, xt)
        bart = Transpose <perm = [1, 0]> (bar)
        column = Unsqueeze (bart, two)
        q = Sub (column, p)
        flat = Squeeze (q, two)
        y = Mul (flat, x)
        z = Add (n, one)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [2], time_axis: null}]
outputs: [{name: y, dtype: float32, dims: [2], time_axis: null}]
states:
  - {input_name: p, output_name: q, dtype: float32, dims: [2, 1], initial: [[1], [-2]]}
  - {input_name: n, output_name: z, dtype: float64, dims: [1], batch_axis: 1, initial: 5}
  - {input_name: foo, output_name: bar, dtype: float32, dims: [2], batch_axis: 1}
""",
)

# Time first, batch in the middle: what PyTorch's LSTM does without batch_first.
TIME_FIRST = Foreign(
    """
    g (float[T, B, 2] x, float[1, B, 2] h) => (float[T, B, 2] y, float[1, B, 2] after)
      <int64 zero = {0}, int64[1] last = {-1}> {
        sums = CumSum (x, zero)
        y = Add (sums, h)
        after = Gather <axis = 0> (y, last)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [2], batch_axis: 1, time_axis: 0}]
outputs: [{name: y, dtype: float32, dims: [2], batch_axis: 1, time_axis: 0}]
states: [{input_name: h, output_name: after, dtype: float32, dims: [1, 2], batch_axis: 1}]
""",
)

# Time last, as convolutions have it.
TIME_LAST = Foreign(
    """
    g (float[B, 2, T] x, float[B, 2, 1] h) => (float[B, 2, T] y, float[B, 2, 1] after)
      <int64 two = {2}, int64[1] last = {-1}> {
        sums = CumSum (x, two)
        y = Add (sums, h)
        after = Gather <axis = 2> (y, last)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [2], time_axis: 2}]
outputs: [{name: y, dtype: float32, dims: [2], time_axis: 2}]
states: [{input_name: h, output_name: after, dtype: float32, dims: [2, 1]}]
""",
)

# One sequence: neither tensor has a batch axis.
NO_BATCH = Foreign(
    """
    g (float[T, 2] x, float[2] h) => (float[T, 2] y, float[2] after) <int64 zero = {0}, int64 last = {-1}> {
        sums = CumSum (x, zero)
        y = Add (sums, h)
        after = Gather <axis = 0> (y, last)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [2], batch_axis: null, time_axis: 0}]
outputs: [{name: y, dtype: float32, dims: [2], batch_axis: null, time_axis: 0}]
states: [{input_name: h, output_name: after, dtype: float32, dims: [2], batch_axis: null}]
""",
)

# Exported with one sequence and one step: both axes are there, and fixed.
FIXED = Foreign(
    """
    g (float[1, 1, 2] x, float[1, 2] h) => (float[1, 1, 2] y, float[1, 2] after) <int64[1] one = {1}> {
        step = Squeeze (x, one)
        after = Add (step, h)
        y = Unsqueeze (after, one)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [2]}]
outputs: [{name: y, dtype: float32, dims: [2]}]
states: [{input_name: h, output_name: after, dtype: float32, dims: [2]}]
""",
)

# A causal convolution without a cache: the two steps before must stand in front, along the time axis.
CONTEXT_IN_TIME = Foreign(
    """
    g (float[B, K, 1] x) => (float[B, T, 1] y) <float[1, 1, 3] w = {1, 10, 100}> {
        across = Transpose <perm = [0, 2, 1]> (x)
        filtered = Conv (across, w)
        y = Transpose <perm = [0, 2, 1]> (filtered)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [1], context: 2, context_axis: null}]
outputs: [{name: y, dtype: float32, dims: [1]}]
""",
)

# Samples of sound: each step is three new ones behind the last two, along the last axis.
CONTEXT_IN_STEP = Foreign(
    """
    g (float[B, 1, 5] x, float[B, 1, 1] h) => (float[B, 1, 3] y, float[B, 1, 1] after)
      <float[1, 1, 3] w = {1, 10, 100}, int64[1] last = {-1}> {
        filtered = Conv (x, w)
        y = Add (filtered, h)
        after = Gather <axis = 2> (y, last)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [1, 3], time_axis: null, context: 2, context_axis: 1}]
outputs: [{name: y, dtype: float32, dims: [1, 3], time_axis: null}]
states: [{input_name: h, output_name: after, dtype: float32, dims: [1, 1]}]
""",
)

# A convolution with its cache as a state, as streaming encoders have them.
CONVOLUTION_CACHE = Foreign(
    """
    g (float[B, T, 2] x, float[B, 2, 2] cache) => (float[B, T, 1] y, float[B, 2, 2] next_cache)
      <float[1, 2, 3] w = {1, 2, 3, 4, 5, 6}, int64[1] from = {-2}, int64[1] to = {99999}, int64[1] axis = {2}> {
        across = Transpose <perm = [0, 2, 1]> (x)
        joined = Concat <axis = 2> (cache, across)
        filtered = Conv (joined, w)
        y = Transpose <perm = [0, 2, 1]> (filtered)
        next_cache = Slice (joined, from, to, axis)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [2]}]
outputs: [{name: y, dtype: float32, dims: [1]}]
states: [{input_name: cache, output_name: next_cache, dtype: float32, dims: [2, 2]}]
""",
)

# A gated cell out of small operators, with control flow in it: `If` on a constant, `Loop` over a count.
CONTROL_FLOW = Foreign(
    """
    g (float[B, 2] x, float[B, 2] h, bool fast) => (float[B, 2] y, float[B, 2] after)
      <float[2, 2] u = {0.5, -1, 0.25, 2}, int64 times = {3}, bool true = {1}> {
        mixed = MatMul (h, u)
        raw = Add (mixed, x)
        gate = Sigmoid (raw)
        new = Tanh (raw)
        after = If (fast) <
            then_branch = quick () => (float[B, 2] quick_after) { quick_after = Mul (gate, new) },
            else_branch = slow () => (float[B, 2] slow_after) {
                slow_after = Loop (times, true, new) <
                    body = again (int64 i, bool go, float[B, 2] v) => (bool go_on, float[B, 2] w) {
                        go_on = Identity (go)
                        w = Mul (v, gate)
                    }
                >
            }
        >
        y = Neg (after)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [2], time_axis: null}]
outputs: [{name: y, dtype: float32, dims: [2], time_axis: null}]
states: [{input_name: h, output_name: after, dtype: float32, dims: [2]}]
constants: [{name: fast, dtype: bool, value: 0}]
""",
)

# Other element types, on the wire and in the states.
DTYPES = Foreign(
    """
    g (float16[B, 1] x, int64[B] n, bool[B] flag, float16[B, 1] s, int64[B] count, bool[B] seen, double[B] exact)
      => (float16[B, 1] y, int64[B] total, bool[B] ever, double[B] fine,
          float16[B, 1] s2, int64[B] count2, bool[B] seen2, double[B] exact2)
      <double[1] tiny = {1e-12}> {
        s2 = Add (x, s)
        y = Neg (s2)
        count2 = Add (n, count)
        total = Identity (count2)
        seen2 = Or (flag, seen)
        ever = Identity (seen2)
        exact2 = Add (exact, tiny)
        fine = Identity (exact2)
    }
    """,
    """
inputs:
  - {name: x, dtype: float16, dims: [1], time_axis: null}
  - {name: n, dtype: int64, dims: [], time_axis: null}
  - {name: flag, dtype: bool, dims: [], time_axis: null}
outputs:
  - {name: y, dtype: float16, dims: [1], time_axis: null}
  - {name: total, dtype: int64, dims: [], time_axis: null}
  - {name: ever, dtype: bool, dims: [], time_axis: null}
  - {name: fine, dtype: float64, dims: [], time_axis: null}
states:
  - {input_name: s, output_name: s2, dtype: float16, dims: [1]}
  - {input_name: count, output_name: count2, dtype: int64, dims: [], initial: 9007199254740993}
  - {input_name: seen, output_name: seen2, dtype: bool, dims: []}
  - {input_name: exact, output_name: exact2, dtype: float64, dims: [], initial: 1}
""",
)

# A speaker for each session, a gain that a call has once, and a rate that is the same for all.
CONSTANTS = Foreign(
    """
    g (float[B, T, 2] x, float[2, B] speaker, float gain, int64[1] rate, float[B, 2] h)
      => (float[B, T, 2] y, float[B, 2] after) <int64 one = {1}, int64[1] axis = {1}, int64 last = {-1}> {
        sums = CumSum (x, one)
        before = Unsqueeze (h, axis)
        state = Add (sums, before)
        after = Gather <axis = 1> (state, last)
        across = Transpose <perm = [1, 0]> (speaker)
        own = Unsqueeze (across, axis)
        voiced = Add (state, own)
        loud = Mul (voiced, gain)
        rated = Cast <to = 1> (rate)
        y = Add (loud, rated)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [2]}]
outputs: [{name: y, dtype: float32, dims: [2]}]
states: [{input_name: h, output_name: after, dtype: float32, dims: [2]}]
constants:
  - {name: rate, dtype: int64, dims: [1], value: [1000]}
  - {name: gain, dtype: float32, value: 2, per_session: true}
  - {name: speaker, dtype: float32, dims: [2], batch_axis: 1, per_session: true}
""",
)

# Dynamic quantisation takes its scale from the whole batch: a row's answer depends on the rows beside it.
QUANTISED = Foreign(
    """
    g (float[B, 4] x, float[B, 2] h) => (float[B, 2] y, float[B, 2] after)
      <int8[4, 2] w = {1, -2, 3, 4, -5, 6, 7, -8}, float[1] half = {0.5}> {
        small, scale, zero = DynamicQuantizeLinear (x)
        product = MatMulInteger (small, w, zero)
        whole = Cast <to = 1> (product)
        scaled = Mul (whole, scale)
        kept = Mul (h, half)
        after = Add (scaled, kept)
        y = Identity (after)
    }
    """,
    """
inputs: [{name: x, dtype: float32, dims: [4], time_axis: null}]
outputs: [{name: y, dtype: float32, dims: [2], time_axis: null}]
states: [{input_name: h, output_name: after, dtype: float32, dims: [2]}]
batching: off
""",
)

ALL = {
    "states": STATES,
    "time first": TIME_FIRST,
    "time last": TIME_LAST,
    "no batch": NO_BATCH,
    "fixed": FIXED,
    "context in time": CONTEXT_IN_TIME,
    "context in step": CONTEXT_IN_STEP,
    "convolution cache": CONVOLUTION_CACHE,
    "control flow": CONTROL_FLOW,
    "dtypes": DTYPES,
    "constants": CONSTANTS,
    "quantised": QUANTISED,
}
