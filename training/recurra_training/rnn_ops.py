"""How PyTorch's recurrent layers are written in ONNX: one LSTM, GRU or RNN operator for each layer.

The exporter has a translation of its own for LSTM and GRU, with a dozen operators of shape arithmetic around each,
and unrolls a plain RNN over the length of the example, which fixes that length. These take their place. Weights are
rearranged here by operators on constants; `export.export_onnx` folds them away.

ONNX orders the gates of an LSTM i, o, f, c (PyTorch: i, f, g, o) and those of a GRU z, r, h (PyTorch: r, z, n); see
https://onnx.ai/onnx/operators/onnx__LSTM.html and onnx__GRU.html.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from onnxscript import opset20 as op

from recurra_training.errors import ExportError

Value = Any
"""A tensor of the graph that is being built (onnx_ir.Value, as onnxscript hands it on)."""

OPSET: Final = 20

_FIRST: Final[Value] = [0]
_DIRECTIONS: Final[Value] = [1]
"""Axes; typed so because onnxscript takes lists for tensors, but does not say so."""


def _lstm(
    x: Value,
    hx: Sequence[Value],
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, ...]:
    del dropout, train
    return _stack(op.LSTM, (0, 3, 1, 2), x, hx, params, has_biases, num_layers, bidirectional, batch_first)


def _gru(
    x: Value,
    hx: Value,
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, ...]:
    del dropout, train

    def layer(*args: Value, **attributes: Value) -> tuple[Value, ...]:
        # PyTorch multiplies with the reset gate after the recurrent weights, not before.
        after: tuple[Value, ...] = op.GRU(*args, linear_before_reset=1, **attributes)
        return after

    return _stack(layer, (1, 0, 2), x, [hx], params, has_biases, num_layers, bidirectional, batch_first)


def _rnn(activation: str) -> Callable[..., tuple[Value, ...]]:
    def translate(
        x: Value,
        hx: Value,
        params: Sequence[Value],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Value, ...]:
        del dropout, train

        def layer(*args: Value, **attributes: Value) -> tuple[Value, ...]:
            after: tuple[Value, ...] = op.RNN(*args, activations=[activation], **attributes)
            return after

        return _stack(layer, (0,), x, [hx], params, has_biases, num_layers, bidirectional, batch_first)

    return translate


TRANSLATIONS: Final[dict[Callable[..., Any], Callable[..., Any]]] = {
    torch.ops.aten.lstm.input: _lstm,
    torch.ops.aten.gru.input: _gru,
    torch.ops.aten.rnn_tanh.input: _rnn("Tanh"),
    torch.ops.aten.rnn_relu.input: _rnn("Relu"),
}
"""For the `custom_translation_table` of `torch.onnx.export`."""


def _stack(
    layer: Callable[..., tuple[Value, ...]],
    gates: tuple[int, ...],
    x: Value,
    states: Sequence[Value],
    params: Sequence[Value],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Value, ...]:
    """Layers one above the other: `gates` says which of PyTorch's gates stands where ONNX wants it."""
    if bidirectional:
        raise ExportError("a bidirectional layer reads the future, so it cannot run step by step")
    each = 4 if has_biases else 2
    if len(params) != num_layers * each:
        raise ExportError("an LSTM with projections (proj_size) cannot be exported")
    if batch_first:  # ONNX Runtime's recurrent operators take the time axis first
        x = op.Transpose(x, perm=[1, 0, 2])
    before = [[state] if num_layers == 1 else op.Split(state, axis=0, num_outputs=num_layers) for state in states]
    after: list[list[Value]] = [[] for _ in states]
    for index in range(num_layers):
        weights = [_gates_in_order(value, gates) for value in params[index * each : (index + 1) * each]]
        bias = op.Concat(*weights[2:], axis=1) if has_biases else None
        start = [state[index] for state in before]
        hidden = params[index * each + 1].shape[1]
        y, *ends = layer(x, weights[0], weights[1], bias, None, *start, hidden_size=hidden)
        x = op.Squeeze(y, _DIRECTIONS)  # [T, 1, B, hidden] -> [T, B, hidden]
        for ended, end in zip(after, ends, strict=True):
            ended.append(end)
    if batch_first:
        x = op.Transpose(x, perm=[1, 0, 2])
    return x, *(ended[0] if num_layers == 1 else op.Concat(*ended, axis=0) for ended in after)


def _gates_in_order(weight: Value, gates: tuple[int, ...]) -> Value:
    """`[gates * hidden, ...]` -> `[1, gates * hidden, ...]`, the gates in ONNX's order."""
    hidden = weight.shape[0] // len(gates)
    rows: Value = [gate * hidden + row for gate in gates for row in range(hidden)]
    return op.Unsqueeze(op.Gather(weight, rows, axis=0), _FIRST)
