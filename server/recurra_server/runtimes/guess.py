"""Guesses the signature of a graph that says nothing about itself, and says what it is not sure of.

Only names, types and shapes are looked at here; `verification` runs the model to see whether a guess holds.
"""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Axis = int | str | None
FILL_IN: Final = "FILL_IN"
# Words that tell what goes in from what comes out, and nothing else.
_DIRECTIONS = frozenset(
    ("in", "out", "input", "output", "inputs", "outputs", "next", "new", "prev", "previous", "past", "present", "last",
     "final", "init", "n", "after", "before")
)  # fmt: skip
_BATCH = re.compile(r"batch.*|n|b|bs", re.IGNORECASE)
_TIME = re.compile(r".*(time|seq|len|frames|steps).*|t", re.IGNORECASE)
_LIKE = 0.75


@dataclass(frozen=True, slots=True)
class Node:
    """An input or an output of a graph: its axes are sizes, names of free sizes, or None."""

    name: str
    dtype: str
    shape: tuple[Axis, ...]

    @property
    def sizes(self) -> str:
        """The shape, for people."""
        return ", ".join("?" if axis is None else str(axis) for axis in self.shape)


@dataclass(slots=True)
class Guess:
    """A signature to start from.

    Attributes:
        fields: As they stand in model.yaml; `FILL_IN` where the graph does not tell.
        doubts: What is uncertain, a sentence each.
    """

    fields: dict[str, Any]
    doubts: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is to be filled in."""
        return FILL_IN not in str(self.fields)


def guess(inputs: Sequence[Node], outputs: Sequence[Node]) -> Guess:
    """Guess which inputs are states, and where the axes are."""
    doubts: list[str] = []
    constants = [node for node in inputs if not node.shape]
    shaped = [node for node in inputs if node.shape]
    batch = _batch_name(shaped)
    pairs = _pairs(shaped, list(outputs), batch, doubts)
    states = [node for node, _ in pairs]
    handed_back = {node.name for _, node in pairs}
    data = [node for node in shaped if node not in states]
    answers = [node for node in outputs if node.name not in handed_back]
    if not data or not answers:
        doubts.append("everything looks like a state: there must be an input and an output that are none")
    has_time = any(_time_axis(node, batch) is not None for node in answers)
    doubts += _fixed_steps(data, answers, batch)
    fields: dict[str, Any] = {"format": 1, "description": ""}
    fields["inputs"] = [_tensor(node, batch, doubts, has_time=has_time) for node in data]
    fields["outputs"] = [_tensor(node, batch, doubts, has_time=has_time) for node in answers]
    fields["states"] = [_state(before, after, batch, doubts) for before, after in pairs]
    if constants:
        fields["constants"] = [_constant(node, doubts) for node in constants]
    return Guess(fields, doubts)


def _batch_name(nodes: Sequence[Node]) -> str | None:
    """The name of the free axis that most tensors have, if it is not called after time."""
    counts = Counter(axis for node in nodes for axis in set(node.shape) if isinstance(axis, str))
    ranked = sorted(counts, key=lambda name: (_BATCH.fullmatch(name) is None, -counts[name]))
    return ranked[0] if ranked and not _is_time(ranked[0]) else None


def _is_time(axis: Axis) -> bool:
    return isinstance(axis, str) and _TIME.fullmatch(axis) is not None


def _pairs(
    inputs: Sequence[Node], outputs: Sequence[Node], batch: str | None, doubts: list[str]
) -> list[tuple[Node, Node]]:
    """Which output becomes which input: of like names first, then of like shapes, in the graph's order."""
    chances = []
    for i, before in enumerate(inputs):
        for o, after in enumerate(outputs):
            if _compatible(before, after) and _time_axis(before, batch) is None:
                likeness = _likeness(before.name, after.name)
                order = abs((len(inputs) - i) - (len(outputs) - o))  # states mostly come last on both sides
                chances.append((-likeness, order, i, o))
    found: dict[int, int] = {}
    for likeness, _, i, o in sorted(chances):
        enough = -likeness >= _LIKE or (len(found) < len(inputs) - 1 and _same(inputs[i], outputs[o]) and i > 0)
        if i in found or o in found.values() or not enough:
            continue
        found[i] = o
        if -likeness < _LIKE:
            doubts.append(
                f"{outputs[o].name} -> {inputs[i].name} is taken for a state by shape and order: names do not tell"
            )
    return [(inputs[i], outputs[o]) for i, o in sorted(found.items())]


def _compatible(before: Node, after: Node) -> bool:
    return (before.dtype, len(before.shape)) == (after.dtype, len(after.shape)) and all(
        not (isinstance(a, int) and isinstance(b, int)) or a == b
        for a, b in zip(before.shape, after.shape, strict=True)
    )


def _same(before: Node, after: Node) -> bool:
    """Whether all their fixed sizes are alike, and there are some."""
    fixed = [(a, b) for a, b in zip(before.shape, after.shape, strict=True) if isinstance(a, int) or isinstance(b, int)]
    return bool(fixed) and all(a == b for a, b in fixed)


def _likeness(before: str, after: str) -> float:
    """From 0 to 1 how much two names are alike, but for words that say which way it goes."""
    one, two = _core(before), _core(after)
    if not one or not two:
        return 0.0
    ratio = difflib.SequenceMatcher(None, one, two).ratio()
    return 1.0 if one == two or one + "n" == two or one == two + "0" else ratio


def _core(name: str) -> str:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|\d+", name)
    return " ".join(word.lower() for word in words if word.lower() not in _DIRECTIONS)


def _time_axis(node: Node, batch: str | None) -> int | None:
    """Where the time axis is: a free one that is not the batch's."""
    free = [axis for axis, size in enumerate(node.shape) if not isinstance(size, int)]
    batch_axis = _batch_axis(node, batch)
    rest = [axis for axis in free if axis != batch_axis]
    named = [axis for axis in rest if _is_time(node.shape[axis])]
    return named[0] if named else rest[0] if rest else None


def _fixed_steps(data: Sequence[Node], answers: Sequence[Node], batch: str | None) -> list[str]:
    """Where a size that is fixed may be the number of steps of the example that a graph was exported with."""
    return [
        f"{x.name} is [{x.sizes}] and {y.name} is [{y.sizes}]: if axis {axis} holds steps, {b} at once is all that "
        "this graph takes, and together they are taken for one step. Export it with that axis free (from PyTorch: "
        "torch.onnx.export with dynamo=False and dynamic_axes)"
        for x in data
        for y in answers
        if len(x.shape) == len(y.shape) > 2
        for axis, (a, b) in enumerate(zip(x.shape[:-1], y.shape[:-1], strict=True))
        if isinstance(b, int) and b > 1 and (a == b or not isinstance(a, int)) and axis != _batch_axis(y, batch)
    ]


def _batch_axis(node: Node, batch: str | None, *, state: bool = False) -> int | None:
    if batch is not None and batch in node.shape:
        return node.shape.index(batch)
    free = [axis for axis, size in enumerate(node.shape) if not isinstance(size, int) and not _is_time(size)]
    if free:
        return free[0] if batch is None else None
    ones = [axis for axis, size in enumerate(node.shape) if size == 1]
    if not ones:
        return None
    # [layers, batch, hidden] is what recurrent states look like; elsewhere the batch comes first.
    return 1 if state and len(node.shape) == 3 and 1 in ones else ones[0]


def _tensor(node: Node, batch: str | None, doubts: list[str], *, has_time: bool) -> dict[str, Any]:
    batch_axis = _batch_axis(node, batch)
    time_axis = _time_axis(node, batch) if has_time else None
    if batch_axis is None:
        doubts.append(f"{node.name} has no axis that could be the batch")
    elif node.shape[batch_axis] == 1:
        doubts.append(f"{node.name}: axis {batch_axis} of size 1 is taken for a batch that is fixed at 1")
    elif node.shape[batch_axis] is None:
        doubts.append(f"{node.name}: its free axes have no names; axis {batch_axis} is taken for the batch")
    dims: list[Any] = []
    for axis, size in enumerate(node.shape):
        if axis in (batch_axis, time_axis):
            continue
        dims.append(size if isinstance(size, int) else FILL_IN)
        if not isinstance(size, int):
            doubts.append(
                f"{node.name}: the graph leaves the size of axis {axis} open; say what one step has (without samples "
                "of the step before: those are `context`)"
            )
    return {"name": node.name, "dtype": node.dtype, "dims": dims, "batch_axis": batch_axis, "time_axis": time_axis}


def _state(before: Node, after: Node, batch: str | None, doubts: list[str]) -> dict[str, Any]:
    batch_axis = _batch_axis(before, batch, state=True)
    if batch_axis is None:
        doubts.append(f"{before.name} has no axis that could be the batch")
    elif before.shape[batch_axis] == 1:
        doubts.append(f"{before.name}: axis {batch_axis} of size 1 is taken for a batch that is fixed at 1")
    dims = [
        size if isinstance(size, int) else other if isinstance(other, int) else FILL_IN
        for axis, (size, other) in enumerate(zip(before.shape, after.shape, strict=True))
        if axis != batch_axis
    ]
    if FILL_IN in dims:
        doubts.append(f"{before.name}: the graph leaves sizes of this state open")
    return {
        "input_name": before.name,
        "output_name": after.name,
        "dtype": before.dtype,
        "dims": dims,
        "batch_axis": batch_axis,
    }


def _constant(node: Node, doubts: list[str]) -> dict[str, Any]:
    doubts.append(f"{node.name} is one number for the whole call, so it is taken for a constant: say its value")
    return {"name": node.name, "dtype": node.dtype, "value": FILL_IN}
