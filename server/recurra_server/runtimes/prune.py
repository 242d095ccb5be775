"""Cuts off what only optional outputs need: ONNX Runtime computes all of a graph, whatever is asked of it."""

import logging
from collections.abc import Collection
from pathlib import Path


def without(path: Path, outputs: Collection[str]) -> bytes:
    """A model file's graph without some of its outputs, and without what is computed for them alone.

    Weights that lie in other files stay there.
    """
    # Heavy, and seldom needed.
    import onnx_ir as ir  # noqa: PLC0415
    from onnx_ir.passes.common import RemoveUnusedNodesPass  # noqa: PLC0415

    logging.getLogger("onnx_ir").setLevel(logging.WARNING)  # it tells of each node that goes
    model = ir.load(path)
    kept = [value for value in model.graph.outputs if value.name not in outputs]
    model.graph.outputs.clear()
    model.graph.outputs.extend(kept)
    RemoveUnusedNodesPass()(model)
    return ir.to_proto(model).SerializeToString()
