"""How a session gets into the store, and from the store into the engine of whoever takes it over."""

from collections.abc import Mapping

from recurra_server.engine import snapshots
from recurra_server.engine.accounts import Account
from recurra_server.engine.durability import Durability, Durable
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import SnapshotInvalidError
from recurra_server.engine.ports import Checkpoint
from recurra_server.engine.served_model import Array, ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.engine.snapshots import Snapshot


def beginning(
    engine: Engine, model: ServedModel, now: float, states: Mapping[str, Array] | None, caller: Account | None = None
) -> bytes:
    """Snapshot of a session that has not begun.

    Raises:
        CapacityError, InputNameError: As `Engine.open`.
    """
    with engine.borrow(model, now, states, caller) as session:
        return Snapshot.of(session).encode()


def first_checkpoint(
    engine: Engine,
    snapshot: bytes,
    now: float,
    *,
    session_id: str,
    idle_timeout: float | None,
    durability: Durability,
    caller: Account | None = None,
) -> Checkpoint:
    """What a new session is kept as, once it is sure that it could be opened here.

    Raises:
        Exception: As `snapshots.restore`.
    """
    known = Snapshot.decode(snapshot)
    model = snapshots.model_of(engine, known)
    known.values_for(model)
    session_id, timeout = engine.check_open(model, now, session_id, idle_timeout, caller=caller)
    owner = caller or engine.accounts.nobody
    return Checkpoint(owner.store_key(session_id), 0, 0, durability.value, timeout, snapshot)


def adopt(engine: Engine, checkpoint: Checkpoint, now: float, caller: Account | None = None) -> Session:
    """Go on with a session that this server now owns, and that was found under its name in the caller's account.

    Raises:
        Exception: As `snapshots.restore`; the session is then in the store as before, for another server.
    """
    owner = caller or engine.accounts.nobody
    try:
        durability = Durability(checkpoint.durability)
    except ValueError as error:
        raise SnapshotInvalidError(f"a checkpoint cannot be read: {error}") from None
    session = snapshots.restore(
        engine,
        checkpoint.snapshot,
        now,
        session_id=owner.session_id(checkpoint.store_key),
        idle_timeout=min(checkpoint.idle_timeout, engine.limits.max_idle_timeout),
        skip_admission=True,
        caller=caller,
    )
    session.durable = Durable(engine.ledger, session, durability, checkpoint)
    return session


def encode(session: Session) -> bytes:
    """A session as it stands after its last step that was applied."""
    return Snapshot.of(session).encode()
