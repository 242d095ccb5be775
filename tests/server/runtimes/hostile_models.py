"""Loads models that were damaged on purpose: `python ... <folder> <seed> <count>`.

A process of its own, with bounded memory: what crashes it, or is neither loaded nor refused with an exception, shows in
its exit status. Prints how many were loaded and how many refused.
"""

import random
import resource
import sys
from collections import Counter
from pathlib import Path

import onnx
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import probe

from tests.support import foreign, models

_SIZES = [0, 1, 2, 3, -1, -2, 7, 255, 65_536, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]
_OPERATORS = ["Reshape", "Expand", "ConstantOfShape", "Scan", "Gather", "LSTM", "Concat", "Slice"]
_MEMORY = 6 << 30


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change, cut out and put in some bytes."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(damaged))
        match rng.randrange(3):
            case 0:
                damaged[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            case 1:
                del damaged[at : at + rng.randrange(1, 9)]
            case _:
                damaged[at:at] = rng.randbytes(rng.randrange(1, 9))
    return bytes(damaged)


def damage_graph(data: bytes, rng: random.Random) -> bytes:
    """Change sizes, types, operators and edges of the graph."""
    model = onnx.load_from_string(data)
    graph = model.graph
    for _ in range(rng.choice([1, 1, 2, 4])):
        node, value = rng.choice(graph.node), rng.choice([*graph.input, *graph.output])
        match rng.randrange(7):
            case 0 if graph.initializer and (dims := rng.choice(graph.initializer).dims):
                dims[rng.randrange(len(dims))] = rng.choice(_SIZES)
            case 1 if axes := value.type.tensor_type.shape.dim:
                axes[rng.randrange(len(axes))].dim_value = rng.choice(_SIZES)
            case 2 if node.attribute:
                attribute = rng.choice(node.attribute)
                attribute.i = rng.choice(_SIZES)
                attribute.ints[:] = [rng.choice(_SIZES) for _ in attribute.ints]
            case 3 if len(graph.node) > 1:
                graph.node.remove(node)
            case 4 if node.input:
                node.input[rng.randrange(len(node.input))] = rng.choice(rng.choice(graph.node).output)
            case 5:
                value.type.tensor_type.elem_type = rng.randrange(24)
            case _:
                node.op_type = rng.choice(_OPERATORS)
    return model.SerializeToString()


def main(folder: Path, seed: int, count: int) -> None:
    """Load `count` damaged models."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    rng = random.Random(seed)
    paths = [models.publish(folder, "lstm", models.lstm(2, 3)), models.publish(folder, "sum", models.counter())]
    # A `Loop` can be told to run for years; that is for those who try models in a process of their own.
    kinds = {name: kind for name, kind in foreign.ALL.items() if kind is not foreign.CONTROL_FLOW}
    paths += [kind.publish(folder, name.replace(" ", "-")) for name, kind in kinds.items()]
    whole = {path: path.read_bytes() for path in paths}
    outcomes: Counter[str] = Counter()
    for number in range(count):
        path = rng.choice(paths)
        path.write_bytes((damage_graph if number % 3 else damage_bytes)(whole[path], rng))
        try:
            probe(OnnxRuntime(path), 4)
        except Exception as error:
            outcomes["refused" if str(error) else "without a word"] += 1
        else:
            outcomes["loaded"] += 1
    print(dict(outcomes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
