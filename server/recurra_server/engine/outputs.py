"""Which of a model's outputs a step is answered with: its default ones, or those that are asked for by name."""

from collections.abc import Sequence
from dataclasses import dataclass

from recurra_server.engine.errors import InvalidRequestError, shown
from recurra_server.engine.signature import Signature
from recurra_server.engine.specs import TensorSpec


@dataclass(frozen=True, slots=True)
class Choice:
    """Outputs that are asked for by name.

    Attributes:
        names, specs: What is answered, in the order that it was asked for.
        in_full: Whether a model call has to compute optional outputs for it.
        places: Where each of them stands among the outputs of that call.
    """

    names: tuple[str, ...]
    specs: tuple[TensorSpec, ...]
    in_full: bool
    places: tuple[int, ...]

    def of(self, outputs: Sequence[bytes]) -> tuple[bytes, ...]:
        """Take what is wanted from all outputs of a call."""
        return tuple([outputs[place] for place in self.places])


def check_size(specs: Sequence[TensorSpec], steps: int, most_mb: int) -> None:
    """Whether so many steps of all sessions can be answered at once, in at most so many MiB; a single one always can.

    Raises:
        InvalidRequestError: They cannot.
    """
    size = steps * sum(spec.step_bytes for spec in specs)
    if steps > 1 and size > most_mb << 20:
        raise InvalidRequestError(
            f"the answer to {steps} steps would be {size / 2**20:,.1f} MiB, and is at most {most_mb}: send fewer at "
            "once, or ask for fewer outputs",
            field="inputs",
        )


def choose(signature: Signature, names: Sequence[str]) -> Choice:
    """Read the names of outputs, of which there is at least one.

    Raises:
        InvalidRequestError: The model has no such output, or a name stands twice.
    """
    every = {spec.name: spec for spec in signature.outputs}
    for name in names:
        if name not in every:
            raise InvalidRequestError(
                f"the model has no output {shown(name)}; it has {', '.join(every)}", field="outputs"
            )
    if len(set(names)) < len(names):
        raise InvalidRequestError(
            f"an output is asked for twice; ask for each of {', '.join(every)} at most once",
            field="outputs",
        )
    specs = tuple(every[name] for name in names)
    in_full = any(spec.optional for spec in specs)
    computed = signature.outputs_of(in_full=in_full)
    return Choice(tuple(names), specs, in_full, tuple(computed.index(spec) for spec in specs))
