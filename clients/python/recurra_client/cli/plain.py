"""What others say, for a terminal: a server's names and errors may hold what a terminal would obey."""

from typing import Final

_OBEYED: Final = (
    *range(0x20),  # among them what begins an escape sequence
    *range(0x7F, 0xA0),  # likewise
    *range(0x202A, 0x202F),  # what turns the direction of writing
    *range(0x2066, 0x206A),
)
_LEFT_OUT: Final = dict.fromkeys(code for code in _OBEYED if chr(code) not in "\n\t")


def plain(text: str) -> str:
    """A text without what is not shown but obeyed; lines and tabs stay."""
    return text.translate(_LEFT_OUT)
