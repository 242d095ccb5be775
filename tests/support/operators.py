"""A shared library with an operator that ONNX does not have, and a model that uses it."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

import onnx
from onnx import helper

from tests.support import models

COMPILER: Final = shutil.which("cc")
"""Makes the library; None where there is none."""


def build(folder: Path) -> Path:
    """Make the library, of `recurra.test:Twice`."""
    assert COMPILER is not None
    library = folder / "operators.so"
    source = Path(__file__).with_name("operators.c")
    subprocess.run([COMPILER, "-std=gnu11", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def doubling() -> onnx.ModelProto:
    """A counter whose answers are twice what it counts."""
    model = models.counter()
    graph = model.graph
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
        node.input[:] = [f"{name}_before" if name == output else name for name in node.input]
    graph.node.append(helper.make_node("Twice", [f"{output}_before"], [output], domain="recurra.test"))
    model.opset_import.append(helper.make_opsetid("recurra.test", 1))
    return model
