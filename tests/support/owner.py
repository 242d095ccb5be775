"""A server with durable sessions whose checkpoints are saved when the test says so."""

from dataclasses import replace
from typing import Any

from recurra_server.engine import handover
from recurra_server.engine.durability import Durability, Save
from recurra_server.engine.errors import EngineError
from recurra_server.engine.ledger import BatchBound
from recurra_server.engine.ports import Checkpoint
from recurra_server.engine.sessions import Session
from recurra_server.engine.standing import Standing

from tests.support.harness import Harness


class Owner(Harness):
    """One of the servers that share a store."""

    def begin(self, durability: Durability = Durability.ASYNC, session_id: str = "a", **options: Any) -> Session:
        """Open one."""
        standing = Standing.beginning(self.engine.model("counter"), {})
        options = {"idle_timeout": None, "caller": None, **options}
        checkpoint = handover.first_checkpoint(
            self.engine, standing, self.now, session_id=session_id, durability=durability, **options
        )
        return handover.own(self.engine, standing, replace(checkpoint, epoch=7), self.now, options["caller"])

    def take(self, *, hurried_only: bool = False, most: int = 100, size: int = 1 << 20) -> list[Save]:
        """What would be sent to the store."""
        batch = self.engine.ledger.next_batch(BatchBound(most, size), self.now, hurried_only=hurried_only)
        return [change.durable.take(handover.encode(change.durable.session)) for change in batch]

    def fail_alone(self) -> str | None:
        """Have the store refuse what is tried alone next; its name there, if there is one."""
        change = self.engine.ledger.next_alone(self.now)
        if change is None:
            return None
        save = change.durable.take(b"")
        save.durable.failed(save, self.now, at_fault=True)
        return save.checkpoint.store_key

    def save(self) -> list[Checkpoint]:
        """Save all there is; return it."""
        batch = self.take()
        for save in batch:
            save.durable.saved(save, self.now)
        return [save.checkpoint for save in batch]


def step_of(session: Session) -> int:
    """The last durable step of a session."""
    assert session.durable is not None
    return session.durable.step


def heard(session: Session) -> list[EngineError | None]:
    """Ask to be told when a session is saved."""
    answers: list[EngineError | None] = []
    assert session.durable is not None
    session.durable.when_saved(answers.append)
    return answers
