"""Where a session stands: all that is needed to go on with it, as another session or elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recurra_server.engine.sessions import KeptReply, Session

if TYPE_CHECKING:
    from recurra_server.engine.served_model import Array, ServedModel


@dataclass(frozen=True, slots=True)
class Standing:
    """A session at rest, or before its first step.

    Attributes:
        model: What it runs on.
        values: All that is kept of it, each `[*dims]` by its name.
        applied: Number of time steps applied.
        last_reply: The last step's reply, for a retry; None where that step had no number.
    """

    model: ServedModel
    values: Mapping[str, Array]
    applied: int = 0
    last_reply: KeptReply | None = None

    @classmethod
    def beginning(cls, model: ServedModel, given: Mapping[str, Array]) -> Standing:
        """A session that has not begun, with what is given of its states and constants, each `[*dims]`.

        Raises:
            InputNameError: A constant that has no value of its own is not given.
        """
        model.check_given(given)
        values = {
            spec.name: given[spec.name] if spec.name in given else np.full(spec.dims, spec.initial, spec.np_dtype)
            for spec in model.slots.specs
        }
        return cls(model, values)

    @classmethod
    def of(cls, session: Session) -> Standing:
        """A session, after its last step that was applied."""
        return cls(session.model, session.model.slots.read(session.slot), session.applied, session.last_reply)

    @classmethod
    def take(cls, session: Session, now: float) -> Standing:
        """A session at rest, for somebody who uses it.

        Raises:
            EngineError: It has ended; as `Session.check_open`.
        """
        session.check_open()
        session.model.slots.touch(session.slot, now)
        return cls.of(session)
