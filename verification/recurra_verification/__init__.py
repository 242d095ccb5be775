"""Proves that a model answers alike however its steps come: one by one, in chunks, whole; alone or in company.

That is what a server relies on: it cuts sequences and batches sessions as load has it. Training verifies what it
publishes, the server what others have exported. Each runs models in its own way (a `Player`); both are held to this.
"""

from recurra_verification.checks import ROWS, TOLERANCE, Check, allowing, compare, difference, wrong
from recurra_verification.plays import Array, Call, Played, Player
from recurra_verification.table import table

__all__ = [
    "ROWS",
    "TOLERANCE",
    "Array",
    "Call",
    "Check",
    "Played",
    "Player",
    "allowing",
    "compare",
    "difference",
    "table",
    "wrong",
]
