"""What the engine needs from outside, implemented by `runtimes`."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray


class Runtime(Protocol):
    """Runs one version of one model. Stateless: the states are among what goes in and what comes out."""

    def bind(self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]]) -> Callable[[], None]:
        """Make a model call between arrays, which can be made again and again.

        Args:
            inputs: The inputs in the signature's order, then the states, then the constants: first those of sessions,
                then those that are the same for all. Each contiguous, of the graph's shape for B >= 1 sessions and
                T >= 1 time steps.
            outputs: The outputs in the signature's order, then the next states; likewise.

        Returns:
            A function that runs the model once: reads what stands in `inputs` then, and writes `outputs`. It may
            be called on any thread, one at a time. It raises where the model refuses the values (the engine
            finds out whose they are), or answers in another shape than that of `outputs`.
        """
        ...
