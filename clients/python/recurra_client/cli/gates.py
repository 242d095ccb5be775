"""What happens inside an LSTM while it is streamed: `recurra stream --gates`."""

from array import array
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from recurra.v1 import models_pb2

from recurra_client.cli.usererror import UserError


class Gate(NamedTuple):
    """One of the outputs that a model with gates has (docs/model-format.md)."""

    name: str
    title: str
    meaning: str
    low: float
    """What it cannot fall below; NaN: there is no such bound."""


GATES: Final = (
    Gate("f", "forget gate f", "how much of the memory is kept", 0),
    Gate("i", "input gate i", "how much is written", 0),
    Gate("c_tilde", "candidate C~", "what would be written", -1),
    Gate("o", "output gate o", "how much is read", 0),
    Gate("c", "memory C", "what is remembered", np.nan),
)


@dataclass(slots=True)
class GateTrack:
    """The gates of one session so far."""

    units: int
    """Units of all layers."""
    _values: "dict[str, array[float]]" = field(default_factory=lambda: {gate.name: array("f") for gate in GATES})

    def add(self, answers: dict[str, NDArray[Any]], count: int) -> None:
        """Record the outputs of one message of `count` steps."""
        for name, values in self._values.items():
            values.extend(np.asarray(answers[name], np.float32).reshape(count * self.units))

    def values(self, name: str, last: int | None = None) -> NDArray[np.float32]:
        """A gate over the steps, `[steps, units]`: all, or the last so many."""
        held = self._values[name]
        steps = len(held) // self.units
        tail = held[(steps - min(last or steps, steps)) * self.units :]
        return np.array(tail, np.float32).reshape(-1, self.units)


NAMES: Final = tuple(gate.name for gate in GATES)


def units_of(model: models_pb2.Model) -> int:
    """How many units a model shows the gates of.

    Raises:
        UserError: It has no gates.
    """
    found = {spec.name: spec for spec in model.outputs}
    if missing := [name for name in NAMES if name not in found]:
        raise UserError(
            f"model {model.name} has no output {missing[0]!r}: see the gates of an LSTM published by "
            "`recurra export --gates`"
        )
    return int(np.prod(list(found["f"].dims), dtype=int))


def order(track: GateTrack) -> NDArray[np.int64]:
    """The units in an order that shows something: those that keep their memory longest first."""
    return np.argsort(-track.values("f").mean(0), kind="stable")
