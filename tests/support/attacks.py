"""What was tried against the edges of SECURITY.md, by which test, and what came back.

A test that takes the fixture `attack` notes what it tried, and is marked `attack`: `pytest -m attack --attack-table`
runs all of these and prints the table.
"""

from typing import Any, Literal, Protocol, get_args

import pytest

Edge = Literal[
    "gRPC port", "Envoy's edge", "metrics port", "model repository", "store", "access file and keys", "machine", "log",
    "image",
]  # fmt: skip
_PROPERTY = "attack"


class Attack(Protocol):
    """Notes an edge, what was tried, and what came back: to be called where that has been asserted."""

    def __call__(self, edge: Edge, tried: str, came_back: str) -> None: ...


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> Attack:
    """See `Attack`; what a test notes counts only if it passes."""

    def note(edge: Edge, tried: str, came_back: str) -> None:
        # As a property it is a part of the test's report, which comes from other processes too.
        noted, row = request.node.user_properties, (_PROPERTY, (edge, tried, came_back))
        if row not in noted:  # a property-based test tries it many times
            noted.append(row)

    return note


def pytest_addoption(parser: pytest.Parser) -> None:
    """Tell of the option."""
    parser.addoption("--attack-table", action="store_true", help="print what was tried, and what came back")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what notes attacks."""
    if "attack" in getattr(item, "fixturenames", ()):
        item.add_marker("attack")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table."""
    if not config.getoption("--attack-table"):
        return
    rows = {
        tuple(row)
        for report in terminalreporter.stats.get("passed", ())
        if report.when == "call"
        for name, row in report.user_properties
        if name == _PROPERTY
    }
    terminalreporter.section("attacks")
    terminalreporter.line("| edge | what was tried | what came back |\n|---|---|---|")
    for row in sorted(rows, key=lambda row: (get_args(Edge).index(row[0]), row)):
        terminalreporter.line(f"| {' | '.join(row)} |")
