"""What a soak has found is told, whatever became of it: it has taken an hour."""

from collections import Counter

import pytest

from benchmarks.soak import Seen, Visits, _report, _verdict

_MINUTE = {"steps_per_second": 10.0, "p50": 0.001, "p99": 0.006, "p99_of_seconds": 0.004, "errors": 0.0}


def _told(seen: Seen, capsys: pytest.CaptureFixture[str]) -> str:
    _report(seen, 600.0, 8)
    return capsys.readouterr().out


def test_the_last_sixth_is_held_against_the_first_by_the_medians_of_its_minutes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    minutes = [(at * 50.0, _MINUTE | {"p99_of_seconds": p99}) for at, p99 in enumerate((0.004,) * 10 + (0.008, 0.008))]
    minutes.insert(1, (40.0, _MINUTE | {"p99_of_seconds": 9.0}))  # the machine stood still
    told = _told(Seen(Visits(), minutes, [(float(at), 2**20) for at in range(600)], Counter()), capsys)
    assert "p99: the last is 2.00 of the first" in told
    assert "p99 of whole minutes: the last is 1.00 of the first" in told
    assert "errors: none" in told
    assert "1.0 MiB after a tenth, 1.0 MiB at the end" in told


def test_minutes_that_broke_are_errors_and_the_rest_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    seen = Seen(Visits(), [(300.0, _MINUTE)], [(100.0, 2**20), (500.0, 2**20)], Counter({"ping timeout": 11}))
    told = _told(seen, capsys)
    assert "'ping timeout': 11" in told
    assert "p99 in each sixth, in ms: unknown, unknown, unknown, 4.00 (4.00-4.00), unknown, unknown" in told


@pytest.mark.parametrize(
    ("visits", "broken", "last", "left", "said"),
    [
        ({}, {}, {}, {}, ""),
        ({}, {}, {"p99_of_seconds": 0.0047}, {}, ""),
        ({}, {}, {"p99_of_seconds": 0.005}, {}, "not as promised: p99, 1.25 of what it was\n"),
        ({"SESSION_EXPIRED": 1}, {}, {}, {}, "not as promised: errors\n"),
        ({}, {"ping timeout": 1}, {}, {}, "not as promised: errors\n"),
        ({}, {}, {"errors": 1.0}, {}, "not as promised: errors\n"),
        ({}, {}, {}, {"tasks": 3}, "not as promised: leftovers\n"),
        (
            {"INTERNAL": 2},
            {},
            {"p99_of_seconds": 0.009},
            {"tasks": 3},
            "not as promised: errors; leftovers; p99, 2.25 of what it was\n",
        ),
    ],
)
def test_a_soak_fails_where_a_promise_is_broken_and_says_which(
    visits: dict[str, int],
    broken: dict[str, int],
    last: dict[str, float],
    left: dict[str, int],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    minutes = [(0.0, _MINUTE), (550.0, _MINUTE | last)]
    seen = Seen(Visits(errors=Counter(visits)), minutes, [], Counter(broken))
    assert _verdict(seen, 600.0, left) == (1 if said else 0)
    assert capsys.readouterr().out == said
