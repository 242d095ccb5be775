"""SECURITY.md says what is tried, and all that it says is."""

import ast
import re
from pathlib import Path
from typing import get_args

from tests.support.attacks import Edge

TESTS = Path(__file__).parents[1]
DOCUMENT = (TESTS.parent / "SECURITY.md").read_text()


def table(header: str) -> list[list[str]]:
    """The rows of a table of the document, by how its header begins."""
    (rows,) = re.findall(rf"^{re.escape(header)}.*\n\|[-|]+\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    return [[cell.strip() for cell in row.strip("|\n").split("|")] for row in rows.splitlines()]


def noted() -> dict[Path, set[str]]:
    """The edges that each file of tests notes attacks on."""
    found: dict[Path, set[str]] = {}
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name("attack"), args=[ast.Constant(str(edge)), *_]):
                    found.setdefault(path.relative_to(TESTS.parent), set()).add(edge)
    return found


def test_every_edge_of_the_threat_model_is_attacked() -> None:
    edges = {edge for edge, *_ in table("| edge |") if edge}
    assert edges == set(get_args(Edge))
    assert set().union(*noted().values()) == edges


def test_the_tests_that_are_named_are_those_that_make_attacks_runs() -> None:
    named = {
        Path(name) if "/" in name else Path("tests/security", name)
        for _, tests in table("| promise |")
        for name in re.findall(r"`([^`]+)`", tests)
    }
    assert named == set(noted())
