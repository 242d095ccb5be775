"""Graphs that crash, never end or take all memory."""

from tests.support.foreign import CONTROL_FLOW, Foreign

_ONE_NUMBER = """
inputs: [{name: x, dtype: int64, dims: [], time_axis: null}]
outputs: [{name: y, dtype: int64, dims: [], time_axis: null}]
"""

# What harms the process that runs it. ONNX Runtime divides the least integer by -1 as the processor does: SIGFPE.
CRASHING = Foreign(
    """
    g (int64[B] x) => (int64[B] y) <int64[1] least = {-9223372036854775808}, int64[1] minus = {-1}> {
        low = Add (x, least)
        y = Div (low, minus)
    }
    """,
    _ONE_NUMBER,
)
ENDLESS = Foreign(CONTROL_FLOW.graph.replace("times = {3}", f"times = {{{2**62}}}"), CONTROL_FLOW.description)
# A few bytes that stand for four terabytes.
HUGE = Foreign(
    """
    g (int64[B] x) => (int64[B] y) <int64[1] size = {1099511627776}, int64[1] axis = {0}> {
        huge = ConstantOfShape <value = int64[1] {1}> (size)
        most = ReduceMax <keepdims = 0> (huge, axis)
        y = Add (x, most)
    }
    """,
    _ONE_NUMBER,
)
HOSTILE = {"crashing": CRASHING, "endless": ENDLESS, "huge": HUGE}
