"""A session as bytes: to keep it, to go on with it on another server, or to come back to it.

A snapshot says which model it is of and how what it holds is laid out, and fits only where both are the same. It
is data: every field is checked when it is read, and what does not fit is refused, never reshaped. Nor is more read than
its model can have: a reply has as many outputs as whoever made the bytes says.

The layout, little-endian: `RCS2`; model name and digest, each a length of one byte and UTF-8; SHA-256 of the
layout of the states; u64 steps applied; u32 length of the states, and the states one after the other; u8 1 where
the last reply is kept, then u64 its number, u32 its steps, u32 number of outputs, each with a u32 length, and u32
number of those asked for by name, each a u32 length and UTF-8; CRC-32 of all before it.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import InvalidRequestError, SnapshotInvalidError, SnapshotMismatchError, shown
from recurra_server.engine.served_model import Array, ServedModel
from recurra_server.engine.sessions import KeptReply, Session
from recurra_server.engine.standing import Standing

_MAGIC, _OLD_MAGIC = b"RCS2", b"RCS1"
_LARGEST_STEP = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session at rest.

    Attributes:
        model, digest: What it is of.
        stamp: Hash of how the states are laid out.
        applied: Number of time steps applied.
        values: All that is kept of the session, one after the other.
        reply: The last step's reply, for a retry, where that step had a number: as it stands in the bytes.
    """

    model: str
    digest: str
    stamp: bytes
    applied: int
    values: bytes
    reply: bytes

    @classmethod
    def of(cls, standing: Standing) -> "Snapshot":
        """Take a session that stands there."""
        model = standing.model
        values = b"".join(standing.values[spec.name].tobytes() for spec in model.slots.specs)
        return cls(model.name, model.digest, model.slots.stamp, standing.applied, values, _written(standing.last_reply))

    def standing(self, model: ServedModel) -> Standing:
        """Where the session stood.

        Raises:
            SnapshotMismatchError: It is of another model.
            SnapshotInvalidError: It holds what no session can hold.
        """
        if self.digest != model.digest or self.stamp != model.slots.stamp:
            raise SnapshotMismatchError(
                f"the snapshot is of model {shown(self.model)} with digest {self.digest[:19]}…; {model.name} version "
                f"{model.version} is {model.digest[:19]}…: serve the model that it was taken of",
                model=self.model[:64],
                digest=self.digest[:80],
                expected_digest=model.digest,
            )
        return Standing(model, self._values(model), self.applied, self._last_reply(model))

    def _values(self, model: ServedModel) -> dict[str, Array]:
        if len(self.values) != model.slots.row_bytes:
            raise SnapshotInvalidError("the snapshot's states have another length than its model's")
        values: dict[str, Array] = {}
        begin = 0
        for spec in model.slots.specs:
            array = np.frombuffer(self.values, spec.np_dtype, spec.row_bytes // spec.np_dtype.itemsize, begin)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise SnapshotInvalidError(f"the snapshot's {spec.name!r} holds NaN or infinity")
            values[spec.name] = array.reshape(spec.dims)
            begin += spec.row_bytes
        return values

    def _last_reply(self, model: ServedModel) -> KeptReply | None:
        with _checked():
            kept = _read_reply(_Reader(self.reply), len(model.signature.outputs))
        if kept is None:
            return None
        try:
            choice = model.choose(kept.names)
        except InvalidRequestError as error:
            raise SnapshotInvalidError(f"the reply that the snapshot keeps: {error.message}") from None
        outputs = model.signature.default_outputs if choice is None else choice.specs
        fits = (
            kept.number + kept.steps - 1 == self.applied
            and 0 < kept.steps <= self.applied
            and [len(data) for data in kept.outputs] == [kept.steps * spec.step_bytes for spec in outputs]
        )
        if not fits:
            raise SnapshotInvalidError("the reply that the snapshot keeps is not that of its last step")
        return kept

    def encode(self) -> bytes:
        """As bytes."""
        parts = [_MAGIC]
        for text in (self.model, self.digest):
            raw = text.encode()
            parts += [struct.pack("<B", len(raw)), raw]
        parts += [self.stamp, struct.pack("<QI", self.applied, len(self.values)), self.values, self.reply]
        body = b"".join(parts)
        return body + struct.pack("<I", zlib.crc32(body))

    @classmethod
    def decode(cls, data: bytes) -> "Snapshot":
        """Read bytes; what they mean is only known beside a model (`standing`).

        Raises:
            SnapshotInvalidError: They are no snapshot, one of an older version, or a damaged one.
        """
        if data[:4] == _OLD_MAGIC:
            raise SnapshotInvalidError("the snapshot was made by an older version, in format RCS1; this one reads RCS2")
        if data[:4] != _MAGIC:
            raise SnapshotInvalidError("these bytes are not a snapshot of format RCS2")
        if len(data) < 8 or zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "little"):
            raise SnapshotInvalidError("the snapshot is damaged: its checksum is wrong")
        with _checked():
            return _read(_Reader(data[4:-4]))


@contextmanager
def _checked() -> Iterator[None]:
    """Read what may be anything.

    Raises:
        SnapshotInvalidError: It cannot be read.
    """
    try:
        yield
    except (struct.error, ValueError) as error:
        raise SnapshotInvalidError(f"the snapshot cannot be read: {error}") from None


class _Reader:
    """Takes bytes from the front.

    Raises:
        ValueError, struct.error: There are not enough.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, size: int) -> bytes:
        """So many bytes."""
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise ValueError(f"it ends {size - len(part)} bytes too early")
        self._at += size
        return part

    def unpack(self, form: str) -> Sequence[int]:
        """Numbers."""
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> str:
        """A short text."""
        return self.take(self.unpack("<B")[0]).decode()

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data) - self._at)

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self._data):
            raise ValueError(f"there are {len(self._data) - self._at} bytes too many")


def _read(reader: _Reader) -> Snapshot:
    model, digest, stamp = reader.text(), reader.text(), reader.take(32)
    applied, size = reader.unpack("<QI")
    if applied > _LARGEST_STEP:
        raise ValueError(f"{applied} steps are more than there can be")
    return Snapshot(model, digest, stamp, applied, reader.take(size), reader.rest())


def _read_reply(reader: _Reader, most: int) -> KeptReply | None:
    """The last reply, of a model with so many outputs."""

    def parts() -> tuple[bytes, ...]:
        (count,) = reader.unpack("<I")
        if count > most:
            raise ValueError(f"it has a reply of {count} outputs, and its model has {most}")
        return tuple(reader.take(reader.unpack("<I")[0]) for _ in range(count))

    (has_kept,) = reader.unpack("<B")
    kept = None
    if has_kept:
        number, steps = reader.unpack("<QI")
        kept = KeptReply(number, steps, parts(), tuple(name.decode() for name in parts()))
    reader.end()
    return kept


def _written(reply: KeptReply | None) -> bytes:
    """A reply as `_read_reply` reads it."""
    if reply is None:
        return b"\0"
    parts = [struct.pack("<BQI", 1, reply.number, reply.steps)]
    for some in (reply.outputs, [name.encode() for name in reply.names]):
        parts.append(struct.pack("<I", len(some)))
        for data in some:
            parts += [struct.pack("<I", len(data)), data]
    return b"".join(parts)


def take(session: Session, now: float) -> bytes:
    """A session at rest as bytes.

    Raises:
        EngineError: It has ended; as `Session.check_open`.
    """
    return Snapshot.of(Standing.take(session, now)).encode()


def read(engine: Engine, data: bytes) -> Standing:
    """Where a session stood when a snapshot was taken, on the version of the model that it was taken of.

    Raises:
        SnapshotInvalidError, SnapshotMismatchError, ModelNotFoundError: It cannot go on here.
    """
    snapshot = Snapshot.decode(data)
    newest = engine.model(snapshot.model)
    versions = [model for model in engine.models() if model.name == snapshot.model]
    model = next((model for model in versions if model.digest == snapshot.digest), newest)
    return snapshot.standing(model)


def rewind(session: Session, data: bytes, now: float) -> None:
    """Put a session at rest back to where a snapshot was taken.

    Raises:
        EngineError: It has ended; as `Session.check_open`.
        SnapshotInvalidError, SnapshotMismatchError: The snapshot is not of such a session; it is as it was.
    """
    session.check_open()
    then, slots = Snapshot.decode(data).standing(session.model), session.model.slots
    held = slots.read(session.slot)
    for spec in slots.specs:
        if spec.constant and not np.array_equal(held[spec.name], then.values[spec.name]):
            raise SnapshotMismatchError(
                f"the snapshot was taken of a session with another {spec.name!r}: import it as a session of its own"
            )
    slots.begin(session.slot, then.values)
    slots.touch(session.slot, now)
    session.count_from(then.applied, then.last_reply, now)
