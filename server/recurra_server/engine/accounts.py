"""Whose sessions are whose, and how much of the server one caller may have.

Each caller has an account, and finds only the sessions in it: what is another's is not there. Where callers are
not told apart, all have one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from recurra_server.engine.errors import CapacityError

if TYPE_CHECKING:
    from recurra_server.engine.sessions import Session

_BURST = 1.0  # seconds: who was quiet may be ahead by so much
_LARGEST_CALL = 60.0  # seconds for which one call may use up the steps per second


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds of one caller; None is unbounded.

    Attributes:
        sessions: Open sessions.
        state_bytes: What these and running calls may remember in all.
        steps_per_second: Time steps, on average over a second.
    """

    sessions: int | None = None
    state_bytes: int | None = None
    steps_per_second: float | None = None


class Account:
    """One caller's sessions, and what it uses.

    Attributes:
        key: Names the caller in the store; empty for the one account of callers who are not told apart.
        quota: Its bounds; they may change while it is in use.
        sessions: Its open sessions by their id.
        borrowed: Sessions that only a running call knows.
        state_bytes: What all of these remember: their states, and the replies kept for retries that are not small.
        queued: Its steps that were accepted and are not answered yet.
    """

    __slots__ = (
        "__weakref__", "_paid_until", "_spending", "borrowed", "key", "queued", "quota", "sessions", "state_bytes",
    )  # fmt: skip

    def __init__(self, key: str = "", quota: Quota = Quota(), spending: set[Account] | None = None) -> None:
        self.key = key
        self.quota = quota
        self.sessions: dict[str, Session] = {}
        self.borrowed = 0
        self.state_bytes = 0
        self.queued = 0
        self._paid_until = 0.0
        self._spending = set() if spending is None else spending

    def store_key(self, session_id: str) -> str:
        """The name of one of its sessions in the store: no other account has it ("/" cannot be in an id)."""
        return f"{self.key}/{session_id}" if self.key else session_id

    def session_id(self, store_key: str) -> str:
        """The id of the session that has this name in the store."""
        return store_key.removeprefix(f"{self.key}/") if self.key else store_key

    def check_room(self, state_bytes: int) -> None:
        """Whether it may have one more session that remembers so much.

        Raises:
            CapacityError: It may not.
        """
        quota = self.quota
        if quota.sessions is not None and len(self.sessions) + self.borrowed >= quota.sessions:
            raise _full(
                f"all {quota.sessions} sessions that you may have are in use", "identity_sessions", quota.sessions
            )
        self.check_memory(state_bytes)

    def check_memory(self, state_bytes: int) -> None:
        """Whether its sessions may remember so much more.

        Raises:
            CapacityError: They may not.
        """
        most = self.quota.state_bytes
        if most is not None and not self.has_room(state_bytes):
            what = f"your sessions remember {self.state_bytes:,} bytes, and may {most:,}"
            raise _full(what, "identity_state_bytes", most)

    def has_room(self, state_bytes: int) -> bool:
        """Whether its sessions may remember so much more."""
        return self.quota.state_bytes is None or self.state_bytes + state_bytes <= self.quota.state_bytes

    def debt(self, now: float) -> float:
        """Seconds for which it has to pause before the next steps, to keep to its steps per second."""
        return 0.0 if self.quota.steps_per_second is None else max(0.0, self._paid_until - now)

    def charge(self, steps: int, now: float) -> float:
        """Note that so many time steps are to be run.

        Returns:
            Its debt then.
        """
        rate = self.quota.steps_per_second
        if rate is not None:
            self._paid_until = max(self._paid_until, now - _BURST) + steps / rate
            self._spending.add(self)
        return self.debt(now)

    def spend(self, steps: int, now: float, *, paid: int = 0) -> None:
        """As `charge`, for who cannot be made to pause.

        Args:
            steps: Time steps of the whole call.
            now: The time in seconds.
            paid: How many of them were spent before, when it was not known yet how many there would be.

        Raises:
            CapacityError: It has to pause first, or it is too much for one call; nothing was noted.
        """
        rate = self.quota.steps_per_second
        if rate is None:
            return
        bound = "identity_steps_per_second"
        if not paid and (debt := self.debt(now)):
            what = f"you may run {rate:g} steps a second, and are ahead of that"
            raise CapacityError(what, retry_after=debt, bound=bound, limit=rate)
        if steps > rate * _LARGEST_CALL:
            what = f"{steps:,} steps in one call are more than you may run in {_LARGEST_CALL:g} seconds; send fewer"
            raise CapacityError(what, bound=bound, limit=rate)
        self.charge(steps - paid, now)

    def is_even(self, now: float) -> bool:
        """Whether its steps are paid for, so that a new account would be no better."""
        return self._paid_until <= now - _BURST


class Accounts:
    """The accounts of those who have sessions, are known otherwise, or ran steps just now; the rest is forgotten.

    Attributes:
        nobody: The account of callers who are not told apart.
    """

    def __init__(self) -> None:
        self.nobody = Account()
        self._known: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self._spending: set[Account] = set()  # are held here: else who comes again would have steps to spare again

    def of(self, key: str, quota: Quota) -> Account:
        """A caller's account, with the bounds that it has now."""
        account = self._known.get(key)
        if account is None:
            account = self._known[key] = Account(key, quota, self._spending)
        account.quota = quota
        return account

    def forget_even(self, now: float) -> None:
        """Hold on no longer to those whose steps are paid for."""
        self._spending.difference_update([account for account in self._spending if account.is_even(now)])

    def sessions(self) -> Iterator[Session]:
        """The open sessions of all callers."""
        for account in (self.nobody, *self._known.values()):
            yield from account.sessions.values()


def _full(what: str, bound: str, limit: int) -> CapacityError:
    return CapacityError(f"{what}; close some", retry_after=1.0, bound=bound, limit=limit)
