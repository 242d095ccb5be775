"""The signature: what a model takes, answers and remembers (docs/model-format.md)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

import numpy as np

from recurra_server.engine.specs import (
    ConstantSpec,
    Dtype,
    Kept,
    SignatureError,
    StateSpec,
    TensorSpec,
    Value,
    as_array,
)

__all__ = [
    "ConstantSpec",
    "Dtype",
    "Feedback",
    "Kept",
    "Signature",
    "SignatureError",
    "StateSpec",
    "TensorSpec",
    "Value",
]

_MAX_DIMS: Final = 6
_MAX_STEP_BYTES: Final = 64 << 20


@dataclass(frozen=True)
class Feedback:
    """How an output becomes the next input; `sampled` draws a class index from logits."""

    output: str
    input: str
    sampled: bool = False


@dataclass(frozen=True)
class Signature:
    """Everything the server needs to know to run a model step by step.

    `batching` False: sessions are run one by one, as rows of one call would not be independent.

    Raises:
        SignatureError: The parts do not fit together.
    """

    FORMAT: ClassVar[int] = 1

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()
    constants: tuple[ConstantSpec, ...] = ()
    description: str = ""
    step_seconds: float | None = None
    feedback: Feedback | None = None
    batching: bool = True

    def __post_init__(self) -> None:
        """Refuse a signature whose parts contradict one another."""
        check(self)

    @cached_property
    def kept(self) -> tuple[Kept, ...]:
        """What is kept of a session: states, its own constants, and the contexts of inputs, in this order."""
        states = [
            Kept(state.input_name, state.dtype, state.dims, as_array(state.initial, state)) for state in self.states
        ]
        constants = [
            Kept(spec.name, spec.dtype, spec.dims, None if spec.value is None else as_array(spec.value, spec), True)
            for spec in self.own_constants
        ]
        contexts = []
        for spec in self.inputs:
            if spec.context:
                before, _ = spec.context_rows(np.empty(spec.graph_shape(1, 1), np.bool_))
                dims = before.shape[1:]
                contexts.append(Kept(f"{spec.name}.context", spec.dtype, dims, np.zeros((), spec.np_dtype)))
        return (*states, *constants, *contexts)

    @cached_property
    def default_outputs(self) -> tuple[TensorSpec, ...]:
        """What is answered where nothing is asked for by name."""
        return tuple(spec for spec in self.outputs if not spec.optional)

    def outputs_of(self, *, in_full: bool) -> tuple[TensorSpec, ...]:
        """The outputs that a model call computes: all, or the default ones."""
        return self.outputs if in_full else self.default_outputs

    @cached_property
    def own_constants(self) -> tuple[ConstantSpec, ...]:
        """The constants that each session has its own value of."""
        return tuple(spec for spec in self.constants if spec.per_session)

    @cached_property
    def fixed_constants(self) -> tuple[ConstantSpec, ...]:
        """The constants that are the same for all sessions."""
        return tuple(spec for spec in self.constants if not spec.per_session)

    @cached_property
    def state_bytes(self) -> int:
        """Bytes that one session holds."""
        return sum(kept.row_bytes for kept in self.kept)

    @cached_property
    def has_time(self) -> bool:
        """Whether several steps can be run in one call."""
        return not any(spec.one_step for spec in (*self.inputs, *self.outputs))

    @cached_property
    def one_by_one(self) -> bool:
        """Whether sessions cannot share a call."""
        tensors: tuple[TensorSpec | StateSpec, ...] = (*self.inputs, *self.outputs, *self.states)
        return not self.batching or any(spec.batch_axis is None for spec in tensors)


def check(signature: Signature) -> None:
    """Refuse a signature whose parts do not fit together.

    Raises:
        SignatureError: Always says which part.
    """
    inputs, outputs, states, constants = signature.inputs, signature.outputs, signature.states, signature.constants
    if not inputs or not outputs:
        raise SignatureError("a signature needs at least one input and one output")
    taken = [spec.name for spec in inputs] + [s.input_name for s in states] + [spec.name for spec in constants]
    _check_unique("input", taken)
    _check_unique("output", [spec.name for spec in outputs] + [state.output_name for state in states])
    for spec in (*inputs, *outputs):
        _check_tensor(spec)
    if any(spec.context for spec in outputs):
        raise SignatureError("only an input has a context")
    if any(spec.optional for spec in inputs):
        raise SignatureError("only an output can be optional")
    if not signature.default_outputs:
        raise SignatureError("at least one output must not be optional: it is what is answered by default")
    for state in states:
        _check_place(state.input_name, state)
        as_array(state.initial, state)
    for constant in constants:
        _check_place(constant.name, constant)
        if constant.value is not None:
            as_array(constant.value, constant)
        elif not constant.per_session:
            raise SignatureError(f"{constant.name}: a constant needs a value, or per_session: true")
    if signature.feedback is not None:
        _check_feedback(signature, signature.feedback)


def _check_tensor(spec: TensorSpec) -> None:
    _check_place(spec.name, spec)
    width = spec.dims[-1] if spec.dims else 1
    classes = spec.labels and spec.dims == () and spec.np_dtype.kind in "iu"  # the labels name the classes
    if spec.labels and not classes and len(spec.labels) != width:
        raise SignatureError(f"{spec.name}: {len(spec.labels)} labels for {width} entries")
    if len(spec.units) not in (0, 1, width):
        raise SignatureError(f"{spec.name}: {len(spec.units)} units for {width} entries")
    _check_context(spec)


def _check_context(spec: TensorSpec) -> None:
    if spec.context < 0:
        raise SignatureError(f"{spec.name}: context {spec.context} must be at least 0")
    if spec.context and spec.context_axis is None and spec.time_axis is None:
        raise SignatureError(f"{spec.name}: context_axis null is the time axis, and it has none")
    if spec.context and spec.context_axis is not None and not 0 <= spec.context_axis < len(spec.dims):
        raise SignatureError(f"{spec.name}: context_axis {spec.context_axis} must be an axis of dims {list(spec.dims)}")


def _check_place(name: str, spec: TensorSpec | StateSpec | ConstantSpec) -> None:
    """Hold a tensor's sizes and axes to what an array can have."""
    context = spec.context if isinstance(spec, TensorSpec) else 0
    if not all(size > 0 for size in spec.dims):
        raise SignatureError(f"{name}: dims {list(spec.dims)} must all be above 0")
    if len(spec.dims) > _MAX_DIMS or (math.prod(spec.dims) + abs(context)) * spec.np_dtype.itemsize > _MAX_STEP_BYTES:
        raise SignatureError(
            f"{name}: dims {list(spec.dims)} are more than {_MAX_DIMS} or more than {_MAX_STEP_BYTES >> 20} MiB"
        )
    try:
        _ = spec.layout
    except ValueError as error:
        axes = "batch_axis and time_axis" if isinstance(spec, TensorSpec) else "batch_axis"
        raise SignatureError(f"{name}: {axes} {error}") from None


def _check_feedback(signature: Signature, feedback: Feedback) -> None:
    source = next((spec for spec in signature.outputs if spec.name == feedback.output), None)
    target = next((spec for spec in signature.inputs if spec.name == feedback.input), None)
    if source is None or target is None or len(signature.inputs) != 1:
        raise SignatureError("feedback must name an output and the model's only input")
    if source.optional:
        raise SignatureError("the output that is fed back must not be optional")
    if feedback.sampled:
        if target.np_dtype.kind not in "iu" or target.dims != () or len(source.dims) != 1:
            raise SignatureError("sampled feedback needs logits over classes and an integer input with dims []")
        if source.dims[0] - 1 > np.iinfo(target.np_dtype).max:
            raise SignatureError(f"sampled feedback: {target.dtype} cannot number {source.dims[0]} classes")
    elif (source.dims, source.dtype) != (target.dims, target.dtype):
        raise SignatureError("feedback without sampling needs an output of the input's dims and dtype")


def _check_unique(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SignatureError(f"the {what} {name!r} stands twice")
