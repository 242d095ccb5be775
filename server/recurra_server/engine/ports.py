"""What the engine needs from outside, implemented by `runtimes`."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray


class Runtime(Protocol):
    """Runs one version of one model. Stateless: the states are arguments and results."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Run the model once.

        Args:
            feeds: Every input and every state of the signature by name, laid out as the
                graph has them, for B >= 1 sessions and T >= 1 time steps.

        Returns:
            The outputs in the signature's order, then the next states in the signature's order.

        Raises:
            Exception: The model refuses these values; the engine finds out whose they are.
        """
        ...
