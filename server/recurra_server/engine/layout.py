"""Where the axes of sessions' rows are in a graph's tensor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from numpy.typing import NDArray

Array = NDArray[Any]
_Size = TypeVar("_Size")


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of a graph tensor's axes, against rows that have the sessions first.

    Attributes:
        order: For each axis of the rows its place in the graph's tensor; those that the graph lacks come last.
        missing: How many axes of the rows the graph lacks.
    """

    order: tuple[int, ...]
    missing: int

    @classmethod
    def of(cls, rank: int, places: Sequence[int | None]) -> "Layout":
        """Rows of `rank` axes, of which the first are at `places` (None: not in the graph), the rest in order.

        Raises:
            ValueError: The places are not different axes of the graph's tensor.
        """
        missing = places.count(None)
        known = [place for place in places if place is not None]
        if len(set(known)) < len(known) or not all(0 <= place < rank - missing for place in known):
            raise ValueError(f"must be different axes from 0 to {rank - missing - 1}")
        last = iter(range(rank - missing, rank))
        first = [next(last) if place is None else place for place in places]
        return cls((*first, *(axis for axis in range(rank) if axis not in first)), missing)

    def shape(self, sizes: Sequence[_Size]) -> tuple[_Size, ...]:
        """The shape of the graph's tensor for rows of these sizes."""
        placed = [sizes[self.order.index(axis)] for axis in range(len(sizes))]
        return tuple(placed[: len(placed) - self.missing])

    def rows(self, tensor: Array) -> Array:
        """See the graph's tensor as rows; a view, to read or to write."""
        return tensor[(..., *(None,) * self.missing)].transpose(self.order)
