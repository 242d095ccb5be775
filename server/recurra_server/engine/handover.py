"""How a session gets into the store, and from the store into the engine of whoever takes it over."""

from recurra_server.engine import snapshots
from recurra_server.engine.accounts import Account
from recurra_server.engine.durability import Durability, Durable
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import SnapshotInvalidError
from recurra_server.engine.ports import Checkpoint
from recurra_server.engine.sessions import Session
from recurra_server.engine.snapshots import Snapshot
from recurra_server.engine.standing import Standing


def first_checkpoint(
    engine: Engine,
    standing: Standing,
    now: float,
    *,
    session_id: str,
    idle_timeout: float | None,
    durability: Durability,
    caller: Account | None = None,
) -> Checkpoint:
    """What a new session is kept as, once it is sure that it could be opened here.

    Raises:
        Exception: As `Engine.open`.
    """
    session_id, timeout = engine.check_open(standing.model, now, session_id, idle_timeout, caller=caller)
    owner = caller or engine.accounts.nobody
    return Checkpoint(owner.store_key(session_id), 0, 0, durability.value, timeout, Snapshot.of(standing).encode())


def own(
    engine: Engine, standing: Standing, checkpoint: Checkpoint, now: float, caller: Account | None = None
) -> Session:
    """Go on with a session that this server now owns in the store, where it stands as it is kept there.

    Raises:
        SnapshotInvalidError: There is no such durability.
        Exception: As `Engine.open`; the session is then in the store as before.
    """
    owner = caller or engine.accounts.nobody
    try:
        durability = Durability(checkpoint.durability)
    except ValueError as error:
        raise SnapshotInvalidError(f"a checkpoint cannot be read: {error}") from None
    session = engine.go_on(
        standing,
        now,
        session_id=owner.session_id(checkpoint.store_key),
        idle_timeout=min(checkpoint.idle_timeout, engine.limits.max_idle_timeout),
        skip_admission=True,
        caller=caller,
    )
    session.durable = Durable(engine.ledger, session, durability, checkpoint)
    return session


def adopt(engine: Engine, checkpoint: Checkpoint, now: float, caller: Account | None = None) -> Session:
    """Go on with a session that was found under its name in the caller's account, and that this server now owns.

    Raises:
        Exception: As `snapshots.read` and `own`; the session is then in the store as before, for another server.
    """
    return own(engine, snapshots.read(engine, checkpoint.snapshot), checkpoint, now, caller)


def encode(session: Session) -> bytes:
    """A session as it stands after its last step that was applied."""
    return Snapshot.of(Standing.of(session)).encode()
