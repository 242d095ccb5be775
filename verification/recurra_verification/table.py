"""Checks for people."""

from collections.abc import Sequence

from rich.table import Table

from recurra_verification.checks import Check


def table(checks: Sequence[Check]) -> Table:
    """How much each way to run a model differs from whole sequences alone."""
    shown = Table(box=None, pad_edge=False)
    shown.add_column("Verified: whole sequences alone, against")
    shown.add_column("largest difference", justify="right")
    for check in checks[1:] if checks[0].passed else checks:  # the first compares whole sequences with themselves
        shown.add_row(check.name, f"{check.difference:.1e}" + ("" if check.passed else " too much"))
    return shown
