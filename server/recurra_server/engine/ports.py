"""What the engine needs from outside, implemented by `runtimes` and `stores`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


class Runtime(Protocol):
    """Runs one version of one model. Stateless: the states are among what goes in and what comes out."""

    def bind(
        self, inputs: Sequence[NDArray[Any]], outputs: Sequence[NDArray[Any]], *, in_full: bool = False
    ) -> Callable[[], None]:
        """Make a model call between arrays, which can be made again and again.

        Args:
            inputs: The inputs in the signature's order, then the states, then the constants: first those of sessions,
                then those that are the same for all. Each contiguous, of the graph's shape for B >= 1 sessions and
                T >= 1 time steps.
            outputs: The outputs in the signature's order, then the next states; likewise.
            in_full: Whether the optional outputs are among them; where not, they are not computed.

        Returns:
            A function that runs the model once: reads what stands in `inputs` then, and writes `outputs`. It may
            be called on any thread, one at a time. It raises where the model refuses the values (the engine
            finds out whose they are), or answers in another shape than that of `outputs`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A session as the store keeps it.

    Attributes:
        store_key: The account's key and the session's id (`Account.store_key`).
        epoch: The number by which a server owns it; taking it over raises it.
        revision: Number of this checkpoint; it rises with each one of the session.
        durability: Value of its `Durability`.
        idle_timeout: Seconds after which the store forgets it, counted anew from each checkpoint.
        snapshot: The session itself, as bytes.
    """

    store_key: str
    epoch: int
    revision: int
    durability: int
    idle_timeout: float
    snapshot: bytes


class StoreError(Exception):
    """The store cannot be reached, or cannot do what it is asked; whether it has done it is not known.

    Args:
        message: What has happened, for the log.
        plain: How it is with the store, for a caller: "the store ...".
    """

    def __init__(self, message: str, plain: str = "cannot be reached") -> None:
        super().__init__(message)
        self.plain = plain


class SessionStore(Protocol):
    """Where checkpoints live. All methods raise StoreError, and may be called again with the same arguments then.

    Whatever the order in which calls reach it, what it keeps of a session never goes back: to an older epoch, or
    within an epoch to an older revision.
    """

    async def create(self, checkpoint: Checkpoint) -> int | None:
        """Keep the first checkpoint of a new session.

        Returns:
            Its epoch, above that of any session of this id before it (the checkpoint's own does not count); None where
            there is a session of this id.
        """
        ...

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keep newer checkpoints of several sessions, in one round trip.

        One of which nothing is kept any more is kept again: its owner knows it best.

        Returns:
            For each, whether its epoch still holds; if not, another server owns the session and nothing was changed.
        """
        ...

    async def take_over(self, store_key: str) -> Checkpoint | None:
        """Raise a session's epoch, above any that there was, at once with reading it.

        Returns:
            Its last checkpoint, with the new epoch; None where there is no such session.
        """
        ...

    async def delete(self, sessions: Sequence[tuple[str, int, float]]) -> None:
        """Forget sessions, in one round trip.

        Args:
            sessions: Of each its store key, its epoch (if it has been raised, nothing is done), and for how many
                seconds nobody who owned it so far can save it.
        """
        ...

    async def identity(self) -> str:
        """Who the store is: another one where it may have lost what it kept, as when it was started anew.

        Raises also where it would keep nothing.
        """
        ...

    async def close(self) -> None:
        """End the connections; nothing is asked any more."""
        ...
