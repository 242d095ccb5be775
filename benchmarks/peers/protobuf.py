"""Just enough of the protobuf wire format to write and read the few messages of the peers.

So their generated code, which contradicts ours, need not be installed beside it
(https://protobuf.dev/programming-guides/encoding/).
"""

from collections import defaultdict


def field(number: int, value: int | str | bytes) -> bytes:
    """A field: an integer, or something with a length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def fields(message: bytes) -> dict[int, list[bytes]]:
    """The fields with a length, by number; the others are passed over."""
    found: dict[int, list[bytes]] = defaultdict(list)
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        kind = tag & 7
        if kind == 0:
            _, position = _read_varint(message, position)
        elif kind == 2:
            size, position = _read_varint(message, position)
            found[tag >> 3].append(message[position : position + size])
            position += size
        else:
            position += 8 if kind == 1 else 4
    return found


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)
    return bytes(data)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
