"""Whether there is room for one more session: in all, for its owner, and beside what its model serves already."""

from collections import Counter

from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import CapacityError
from recurra_server.engine.limits import Limits
from recurra_server.engine.served_model import ServedModel


class Room:
    """Counts sessions, those that only one call knows too.

    Attributes:
        taken: Sessions that there are.
        refused: Sessions that could not be opened so far, by (model name, version, digest, bound).
    """

    def __init__(self, limits: Limits) -> None:
        self.taken = 0
        self.refused: Counter[tuple[str, str, str, str]] = Counter()
        self._most = limits.max_sessions

    def check(self, owner: Account, state_bytes: int = 0) -> None:
        """Whether there is room for one that remembers so much.

        Raises:
            CapacityError: There is none.
        """
        if self.taken >= self._most:
            raise CapacityError(
                f"all {self._most} sessions are in use; close some or try again later",
                retry_after=1.0,
                bound="max_sessions",
                limit=self._most,
            )
        owner.check_room(state_bytes)

    def check_open(self, model: ServedModel, owner: Account, now: float, *, skip_admission: bool) -> None:
        """Whether one can be opened; a refusal is counted.

        Raises:
            CapacityError: It cannot.
        """
        try:
            self.check(owner, model.signature.state_bytes)
            if model.admission is not None and not skip_admission:
                model.admission.check(model.sessions, now)
        except CapacityError as error:
            self.refused[*model.key, error.metadata["bound"]] += 1
            raise
