"""Writes a network as one ONNX file that says itself how to run it step by step (docs/model-format.md)."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import optimizer
from torch import Tensor, nn
from torch.export import Dim

from recurra_training.describe import describe
from recurra_training.errors import ExportError
from recurra_training.quiet import quiet
from recurra_training.rnn_ops import OPSET, TRANSLATIONS
from recurra_training.signature import SIGNATURE_KEY, TRAINING_KEY, Signature, StateSpec, TensorSpec
from recurra_training.versions import versions

_FOLD_ALL: Final = 1 << 40
"""Constants of any size are folded: rearranged weights must not be rearranged again at each load."""
_GRAPH: Final = ir.AttributeType.GRAPH
_EXAMPLE: Final = {"batch": 3, "time": 2}
"""Sizes of the example that the network is traced with; neither may be 1, which tracing takes for a constant."""


class ExportedNetwork(nn.Module):
    """The network as its graph has it: in evaluation mode, and with probabilities where it answers logits."""

    def __init__(self, network: nn.Module, signature: Signature) -> None:
        super().__init__()
        self.network = network
        self._probabilities = signature.outputs[0].kind == "probability"
        self.eval()

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """As the network's."""
        y, *others = self.network(x, *states)
        return (y.softmax(-1) if self._probabilities else y), *others


def export_onnx(
    network: nn.Module,
    path: Path,
    signature: Signature | None = None,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write a network to one ONNX file, with free batch and time axes.

    `recurra_training.verify.verify` proves that the file does what the network does; this does not.

    Args:
        network: Anything with `forward(x, *states) -> (y, *states)` and `initial_states(batch)`, on the CPU; between y
            and the states may stand further outputs. It is left in evaluation mode.
        path: The file; its folder must be there.
        signature: What the network takes and answers; None: as `describe(network)` finds it. A first output of kind
            `probability` gets a softmax over its last axis.
        training: More facts for `recurra.training`, such as `metrics` and `seed`.

    Raises:
        ExportError: The network cannot be exported; the message has PyTorch's reason.
    """
    signature = signature or describe(network)  # type: ignore[arg-type]  # said above: it has initial_states
    program = _trace(ExportedNetwork(network, signature), signature)
    optimizer.optimize(program, input_size_limit=_FOLD_ALL, output_size_limit=_FOLD_ALL)
    ClearMetadataAndDocStringPass()(program)  # source paths and stack traces
    _declare_shapes(program.graph, signature)
    _rename(program.graph)
    program.producer_name, program.producer_version = "recurra", versions()["recurra"]
    model = ir.to_proto(program)
    del model.graph.value_info[:]
    facts = {**(training or {}), "graph_digest": graph_digest(model), "versions": versions()}
    for key, value in {SIGNATURE_KEY: signature.to_json(), TRAINING_KEY: json.dumps(facts)}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def graph_digest(model: onnx.ModelProto) -> str:
    """The SHA-256 of the graph with its weights, without any metadata: equal digests compute the same."""
    bare = onnx.ModelProto()
    bare.graph.CopyFrom(model.graph)
    bare.opset_import.extend(model.opset_import)
    return f"sha256:{hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()}"


def _trace(network: ExportedNetwork, signature: Signature) -> ir.Model:
    free = {name: Dim(name) for name in _EXAMPLE}
    if len(signature.inputs) != 1:
        raise ExportError("a network has one input, besides its states")
    specs: tuple[TensorSpec | StateSpec, ...] = (signature.inputs[0], *signature.states)
    axes = [{i: free[size] for i, size in enumerate(spec.shape()) if isinstance(size, str)} for spec in specs]
    with quiet("torch.onnx"):
        try:
            program = torch.onnx.export(
                network,
                tuple(_example(spec) for spec in specs),
                dynamo=True,
                dynamic_shapes=(axes[0], tuple(axes[1:])) if signature.states else (axes[0],),
                input_names=list(signature.input_shapes()),
                output_names=list(signature.output_shapes()),
                custom_translation_table=TRANSLATIONS,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(_reason(error)) from error
    assert program is not None  # noqa: S101  # so with dynamo=True
    return program.model


def _example(spec: TensorSpec | StateSpec) -> Tensor:
    shape = [_EXAMPLE[size] if isinstance(size, str) else size for size in spec.shape()]
    return torch.zeros(shape, dtype=getattr(torch, spec.dtype))


def _reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of an exporter's error."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, ExportError):
        return error.message
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"PyTorch cannot export the network: {lines[0]}"


def _declare_shapes(graph: ir.Graph, signature: Signature) -> None:
    """Give inputs and outputs the shapes of the signature, and leave those in between to the runtime.

    The shapes that tracing leaves take the example's length for the length of every sequence.
    """
    for node in graph.all_nodes():
        for value in node.outputs:
            value.shape = None
    for values, shapes in ((graph.inputs, signature.input_shapes()), (graph.outputs, signature.output_shapes())):
        for value, shape in zip(values, shapes.values(), strict=True):
            value.shape = ir.Shape(shape)


def _rename(graph: ir.Graph) -> None:
    """Name nodes and what lies between them by their place in the graph.

    The exporter's names count what it has traced before, so one network would not always give one digest.
    """
    counted: Counter[str] = Counter()
    for node in graph.all_nodes():  # those in the body of a loop too
        counted[node.op_type] += 1
        node.name = f"{node.op_type.lower()}_{counted[node.op_type]}"
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer():
                value.name = f"{node.name}_constant_{index}"
        for index, value in enumerate(node.outputs):
            if not (value.is_graph_output() and node.graph is graph):
                value.name = f"{node.name}_output_{index}"
        for body in (attribute.as_graph() for attribute in node.attributes.values() if attribute.type == _GRAPH):
            body.name = f"{node.name}_body"
            for index, value in enumerate(body.inputs):
                value.name, value.shape = f"{node.name}_step_{index}", None
    graph.name = "recurra"
