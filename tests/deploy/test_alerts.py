"""Each alert fires where it must, when it must, and stays quiet just short of that; and says what to do."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.deploy.promql import ROOT, documented_metrics, metrics_in, panels, promtool

RULES = ROOT / "deploy" / "prometheus" / "recurra.rules.yml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}

_SERVER = 'job="recurra", instance="a"'
_MODEL = f'{_SERVER}, model="m", version="1", digest="d"'
_OTHER = f'{_SERVER}, model="n", version="1", digest="e"'
_JOB = {"job": "recurra"}
_INSTANCE = {**_JOB, "instance": "a"}
# What a series is called, and its values, one a minute: "0+60x15" begins at 0 and grows by 60, fifteen times.
Series = dict[str, str]


class Fires(NamedTuple):
    """On these series an alert fires at this minute, with these labels; and not a minute before."""

    alert: str
    what: str
    series: Series
    at: int
    labels: dict[str, str]


class Quiet(NamedTuple):
    """On these series it fires at none of these minutes."""

    alert: str
    what: str
    series: Series
    minutes: Iterable[int]


def _errors(reason: str, fault: str = "server") -> str:
    return f'recurra_errors_total{{{_SERVER}, reason="{reason}", fault="{fault}"}}'


def _steps(outcome: str) -> str:
    return f'recurra_steps_total{{{_MODEL}, outcome="{outcome}"}}'


def _failing(per_thousand: float, reason: str = "internal") -> Series:
    """Of a thousand that are asked in a minute."""
    return {_errors(reason): f"0+{per_thousand}x90", _steps("ok"): f"0+{1000 - per_thousand}x90"}


def _latency(of_thousand: dict[float, int], target: float | None) -> Series:
    """Steps in a minute by the seconds that they stay below, of a model whose steps may take so long."""
    counts = {**{str(bound): count for bound, count in of_thousand.items()}, "+Inf": 1000}
    series = {f'recurra_step_seconds_bucket{{{_MODEL}, le="{le}"}}': f"0+{count}x20" for le, count in counts.items()}
    series[f'recurra_model_info{{{_MODEL}, latest="true"}}'] = "1x20"
    return series | ({} if target is None else {f"recurra_step_target_seconds{{{_MODEL}}}": f"{target}x20"})


def _p99(seconds: float, target: float | None) -> Series:
    return _latency({seconds / 0.99: 1000}, target)  # as a quantile is read from the first bucket


def _workers(count: int) -> Series:
    return {f"recurra_workers{{{_SERVER}}}": f"{count}x15"}


def _used(share: float) -> dict[str, tuple[Series, int]]:
    """A server that uses so much of one of its limits, and from which minute on that shows: rates look back 5."""
    minute = 60 * share  # seconds of processor time of one core
    return {
        "sessions": (
            {
                f"recurra_sessions{{{_MODEL}}}": f"{100 * share - 30}x15",
                f"recurra_sessions{{{_OTHER}}}": "30x15",
                f"recurra_sessions_limit{{{_SERVER}}}": "100x15",
            },
            0,
        ),
        "admission": (
            {
                f"recurra_admission_used_ratio{{{_MODEL}}}": f"{share}x15",
                f"recurra_admission_used_ratio{{{_OTHER}}}": "0.3x15",
            },
            0,
        ),
        "queue": (
            {
                f"recurra_queue_depth{{{_MODEL}}}": f"{100 * share}x15",
                f"recurra_queue_depth{{{_OTHER}}}": "30x15",
                f"recurra_queue_limit{{{_SERVER}}}": "100x15",
            },
            0,
        ),
        "event loop": ({f"recurra_loop_cpu_seconds_total{{{_SERVER}}}": f"0+{2 * minute}x15", **_workers(2)}, 5),
        "model calls": (
            {
                f"recurra_compute_seconds_total{{{_MODEL}}}": f"0+{minute}x15",
                f"recurra_compute_seconds_total{{{_OTHER}}}": f"0+{minute}x15",
                **_workers(2),
            },
            5,
        ),
        "open files": (
            {
                f"process_open_fds{{{_SERVER}}}": f"{100 * share}x15",
                f"process_max_fds{{{_SERVER}}}": "100x15",
                f'recurra_build_info{{{_SERVER}, version="1"}}': "1x15",
                'process_open_fds{job="prometheus", instance="b"}': "100x15",  # no server of ours
                'process_max_fds{job="prometheus", instance="b"}': "100x15",
            },
            0,
        ),
    }


_EXPIRED = f'recurra_sessions_ended_total{{{_MODEL}, reason="expired"}}'
_FAILED = f'recurra_model_load_failed{{{_SERVER}, model="m", version="2"}}'
_LAG = f"recurra_durable_lag_seconds{{{_SERVER}}}"
_STORE = f"recurra_store_up{{{_SERVER}}}"
_VERSION = {**_JOB, "model": "m", "version": "1"}

CASES: list[Fires | Quiet] = [
    Fires("RecurraDown", "no answer for a minute", {f"up{{{_SERVER}}}": "1 0 0 0"}, 2, _INSTANCE),
    Quiet(
        "RecurraDown",
        "now and then, or another's",
        {f"up{{{_SERVER}}}": "1 0 1 0 1 1", 'up{job="another", instance="b"}': "0x5"},
        range(6),
    ),
    Fires("RecurraErrorBudgetBurnsFast", "15 times", _failing(15), 3, _JOB),
    Quiet("RecurraErrorBudgetBurnsFast", "14 times", _failing(14), range(90)),
    Quiet(
        "RecurraErrorBudgetBurnsFast",
        "a burst that is over, but for 14 times",
        {_errors("internal"): "0+20x40 801+1.4x50", _steps("ok"): "0+98.6x90"},
        range(46, 90),
    ),
    Quiet(
        "RecurraErrorBudgetBurnsFast",
        "a burst that is 14 times of an hour",
        {_errors("internal"): "0x80 84x10", _steps("ok"): "0+98x90"},
        range(90),
    ),
    Quiet(
        "RecurraErrorBudgetBurnsFast",
        "what callers did wrong, and what was over their own bounds",
        {_errors("step_gap", "other"): "0+50x90", _errors("capacity", "other"): "0+50x90", _steps("ok"): "0+98x90"},
        range(90),
    ),
    Fires("RecurraErrorBudgetBurnsSlowly", "7 times", _failing(7, "store_unavailable"), 16, _JOB),
    Quiet("RecurraErrorBudgetBurnsSlowly", "5.5 times", _failing(5.5, "store_unavailable"), range(90)),
    Quiet(
        "RecurraErrorBudgetBurnsSlowly",
        "a burst that is over, but for 5 times",
        {_errors("capacity"): "0+5x40 200+0.5x50", _steps("ok"): "0+98x90"},
        range(71, 90),
    ),
    Quiet(
        "RecurraErrorBudgetBurnsSlowly",
        "a burst that is 5.5 times of six hours",
        {_errors("capacity"): "0x300 170x30", _steps("ok"): "0+98x330"},
        range(300, 331),
    ),
    Fires("RecurraStepsSlow", "of its pace", _p99(0.0082, 0.008), 11, _VERSION),
    Quiet("RecurraStepsSlow", "as its pace", _p99(0.0078, 0.008), range(20)),
    Fires("RecurraStepsSlow", "without a pace", _p99(0.102, None), 11, _VERSION),
    Quiet("RecurraStepsSlow", "fast enough without a pace", _p99(0.098, None), range(20)),
    Quiet("RecurraStepsSlow", "of a leisurely pace", _p99(0.5, 1.0), range(20)),
    Fires("RecurraStepsSlow", "1.1 % of them", _latency({0.0079: 989, 0.02: 1000}, 0.008), 11, _VERSION),
    Quiet("RecurraStepsSlow", "0.9 % of them", _latency({0.0079: 991, 0.02: 1000}, 0.008), range(20)),
    *(
        Fires("RecurraNearLimit", f"{limit} at 91 %", series, since + 5, {**_INSTANCE, "limit": limit})
        for limit, (series, since) in _used(0.91).items()
    ),
    *(Quiet("RecurraNearLimit", f"{limit} at 89 %", series, range(15)) for limit, (series, _) in _used(0.89).items()),
    Fires("RecurraSessionsExpire", "21", {_EXPIRED: "0x60 21x5"}, 61, _JOB),
    Quiet("RecurraSessionsExpire", "20", {_EXPIRED: "0x60 20x5"}, range(66)),
    Fires("RecurraSessionsExpire", "five times as many", {_EXPIRED: "0+2x60 160x5"}, 61, _JOB),
    Quiet("RecurraSessionsExpire", "three times as many", {_EXPIRED: "0+10x60 740x2"}, range(60, 63)),
    Fires("RecurraDurableLag", "5.1 s for a minute", {_LAG: "0.1 4.9 5.1 5.1"}, 3, _INSTANCE),
    Quiet("RecurraDurableLag", "now and then", {_LAG: "0.1 6 4.9 6 4.9"}, range(5)),
    Fires("RecurraStoreDown", "for a minute", {_STORE: "1 1 0 0 0"}, 3, _INSTANCE),
    Quiet("RecurraStoreDown", "now and then", {_STORE: "1 0 1 1 0 1"}, range(6)),
    Fires(
        "RecurraModelLoadFailed", "for a minute", {_FAILED: "0 0 1 1"}, 3, {**_INSTANCE, "model": "m", "version": "2"}
    ),
    Quiet("RecurraModelLoadFailed", "mended at once", {_FAILED: "0 1 0 0"}, range(4)),
    Fires(
        "RecurraStateNotFinite",
        "a step",
        {_steps("state_not_finite"): "0 0 0 1"},
        3,
        {**_INSTANCE, "model": "m", "version": "1", "digest": "d", "outcome": "state_not_finite"},
    ),
    Quiet(
        "RecurraStateNotFinite",
        "long ago, and what was refused at the door",
        {_steps("state_not_finite"): "0 7x20", _steps("input_not_finite"): "0+9x20"},
        range(12, 20),
    ),
]


def test_prometheus_takes_the_rules() -> None:
    assert f"{sum(len(group['rules']) for group in GROUPS)} rules found" in promtool("check", "rules", str(RULES))


def test_every_alert_and_every_limit_is_tried() -> None:
    for kind in (Fires, Quiet):
        assert {case.alert for case in CASES if isinstance(case, kind)} == ALERTS.keys()
    limits = {
        rule["labels"]["limit"] for group in GROUPS for rule in group["rules"] if "limit" in rule.get("labels", {})
    }
    assert limits == _used(1.0).keys()
    (drawn,) = (str(panel["targets"]) for _, panel in panels() if panel["title"] == "Nearest to a limit")
    assert set(re.findall(r'"limit", "([a-z ]+)"', drawn)) == limits


@pytest.mark.parametrize("case", CASES, ids=[f"{case.alert}: {case.what}" for case in CASES])
def test_an_alert_fires_and_stays_quiet(case: Fires | Quiet, tmp_path: Path) -> None:
    if isinstance(case, Quiet):
        expected: dict[int, list[dict[str, Any]]] = {minute: [] for minute in case.minutes}
    else:
        severity = ALERTS[case.alert]["labels"]["severity"]
        expected = {case.at - 1: [], case.at: [{"exp_labels": {**case.labels, "severity": severity}}]}
    # promtool compares annotations too: what they say is not what is tried here.
    groups = [
        {
            **group,
            "rules": [{key: value for key, value in rule.items() if key != "annotations"} for rule in group["rules"]],
        }
        for group in GROUPS
    ]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": groups}))
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": case.alert, "exp_alerts": alerts}
            for minute, alerts in expected.items()
        ],
    }
    file = tmp_path / "test.yml"
    order = [group["name"] for group in GROUPS]  # else it is any: alerts may look at figures of a minute ago
    whole = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "group_eval_order": order, "tests": [test]}
    file.write_text(json.dumps(whole))
    promtool("test", "rules", str(file))


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_what_it_means_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"].keys() == {"summary", "means", "act"}


def test_rules_use_documented_metrics_only() -> None:
    documented = {metric.name for metric in documented_metrics()}
    recorded = {rule["record"] for group in GROUPS for rule in group["rules"] if "record" in rule}
    for group in GROUPS:
        for rule in group["rules"]:
            expr = rule["expr"]
            for name in sorted(recorded, key=len, reverse=True):
                expr = expr.replace(name, "")
            assert metrics_in(expr) <= documented, rule
