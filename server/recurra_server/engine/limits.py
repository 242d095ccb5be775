"""The engine's bounds: nothing it holds can grow without end."""

from dataclasses import dataclass

from recurra_server.engine.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that the engine keeps; times are in seconds."""

    max_sessions: int = 100_000
    """Open sessions, of all models."""
    max_queue: int = 10_000
    """Steps and chunks of one model accepted and not yet answered."""
    max_queue_per_session: int = 256
    """Steps and operations of one session that wait behind the one in flight."""
    max_chunk_steps: int = 4096
    """Steps in one chunk."""
    max_answer_mb: int = 64
    """Outputs in one answer to several steps, in MiB."""
    max_batch_size: int = 256
    """Sessions in one model call."""
    max_batch_rows: int = 4096
    """Rows in one StepBatch message."""
    max_piece_steps: int = 64
    """Time steps in one model call: a longer chunk is run in pieces, so that others get their turn."""
    admit_below: float | None = None
    """Seconds: while more than 1 % of a model's steps take longer, from when it is their turn in their session, new
    sessions are refused. Unset: a quarter of the `step_seconds` that the model declares, if it does; 0: never."""
    default_idle_timeout: float = 600.0
    """Seconds a session may go unused before it expires."""
    max_idle_timeout: float = 86_400.0
    """The most seconds a caller may ask for instead."""
    tombstone_seconds: float = 3600.0
    """Seconds for which it is remembered that a session has expired."""
    max_tombstones: int = 100_000
    """How many expired sessions are remembered; the oldest are forgotten first."""

    def idle_timeout(self, wanted: float | None) -> float:
        """The idle timeout of a session whose caller wants this one, None being the default; in seconds.

        Raises:
            InvalidRequestError: It may not have this one.
        """
        if wanted is None:
            return self.default_idle_timeout
        if not 0 < wanted <= self.max_idle_timeout:
            raise InvalidRequestError(
                f"idle_timeout must be above 0 and at most {self.max_idle_timeout:g} s, not {wanted:g} s",
                field="idle_timeout",
            )
        return wanted
