"""How an output becomes the next input, for generating sequences."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a class is drawn from logits.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely class.
        top_k: Draw only from the k most likely classes; 0 from all.

    Raises:
        InvalidRequestError: The temperature is negative or not finite.
    """

    temperature: float = 0.0
    top_k: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be drawn with."""
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InvalidRequestError(
                f"sampling.temperature must be at least 0, not {self.temperature:g}", field="sampling.temperature"
            )

    def draw(self, logits: NDArray[Any], rng: np.random.Generator) -> int:
        """Draw the index of a class from logits `[classes]`.

        Uses the Gumbel-max trick: the argmax of logits plus independent Gumbel noise is
        distributed as their softmax (Gumbel, 1954).
        """
        scores = logits.astype(np.float64)
        if self.temperature == 0:
            return int(scores.argmax())
        if 0 < self.top_k < len(scores):
            cut = np.partition(scores, -self.top_k)[-self.top_k]
            scores[scores < cut] = -np.inf
        return int((scores / self.temperature + rng.gumbel(size=len(scores))).argmax())
