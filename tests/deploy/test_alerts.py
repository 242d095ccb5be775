"""Each alert fires where it must and stays quiet just short of that, by `promtool test rules`; and says what to do."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.deploy.promql import ROOT, documented_metrics, metrics_in, promtool

RULES = ROOT / "deploy" / "prometheus" / "recurra.rules.yml"
GROUPS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}

_SERVER = 'job="recurra", instance="a"'
_MODEL = f'{_SERVER}, model="m", version="1", digest="d"'
# What a series is called, and its values, one a minute: "0+60x10" begins at 0 and grows by 60, ten times.
Series = dict[str, str]


class Case(NamedTuple):
    """When an alert is looked at, the series where it fires, with which labels, and those where it does not."""

    at: str
    fires: Series
    labels: dict[str, str]
    quiet: Series


def _errors(reason: str, fault: str = "server") -> str:
    return f'recurra_errors_total{{{_SERVER}, reason="{reason}", fault="{fault}"}}'


def _steps(outcome: str) -> str:
    return f'recurra_steps_total{{{_MODEL}, outcome="{outcome}"}}'


def _latency(within_10_ms: int) -> Series:
    """A thousand steps a minute, of a model whose steps may take 8 ms."""
    counts = {"0.005": within_10_ms, "0.01": within_10_ms, "0.02": 1000, "+Inf": 1000}
    return {f'recurra_step_seconds_bucket{{{_MODEL}, le="{le}"}}': f"0+{count}x20" for le, count in counts.items()} | {
        f"recurra_step_target_seconds{{{_MODEL}}}": "0.008x20",
        f'recurra_model_info{{{_MODEL}, latest="true"}}': "1x20",
    }


def _sessions(values: str) -> Series:
    return {f"recurra_sessions{{{_MODEL}}}": values, f"recurra_sessions_limit{{{_SERVER}}}": "100x10"}


_JOB = {"job": "recurra"}
_INSTANCE = {**_JOB, "instance": "a"}
_EXPIRED = f'recurra_sessions_ended_total{{{_MODEL}, reason="expired"}}'
_FAILED = f'recurra_model_load_failed{{{_SERVER}, model="m", version="2"}}'

CASES = {
    "RecurraDown": Case(
        "3m",
        {f"up{{{_SERVER}}}": "1 0 0 0"},
        _INSTANCE,
        {f"up{{{_SERVER}}}": "1 0 1 1", 'up{job="another", instance="b"}': "0 0 0 0"},
    ),
    "RecurraErrorBudgetBurnsFast": Case(
        "70m",
        {_errors("internal"): "0+2x90", _steps("ok"): "0+98x90"},
        _JOB,
        # A burst that is over, what callers did wrong, and what was over their own bounds.
        {
            _errors("internal"): "0+20x40 800x50",
            _errors("step_gap", "other"): "0+50x90",
            _errors("capacity", "other"): "0+50x90",
            _steps("ok"): "0+98x90",
        },
    ),
    "RecurraErrorBudgetBurnsSlowly": Case(
        "6h30m",
        {_errors("store_unavailable"): "0+1x400", _steps("ok"): "0+99x400"},
        _JOB,
        {_errors("store_unavailable"): "0+1x400", _steps("ok"): "0+299x400"},
    ),
    "RecurraStepsSlow": Case("20m", _latency(980), {**_JOB, "model": "m", "version": "1"}, _latency(995)),
    "RecurraNearLimit": Case(
        "10m", _sessions("95x10"), {**_INSTANCE, "limit": "sessions"}, _sessions("50x2 95x2 50x6")
    ),
    "RecurraSessionsExpire": Case("90m", {_EXPIRED: "0+1x85 86+20x5"}, _JOB, {_EXPIRED: "0+20x90"}),
    "RecurraDurableLag": Case(
        "5m",
        {f"recurra_durable_lag_seconds{{{_SERVER}}}": "0.1 0.1 6 66 126 186"},
        _INSTANCE,
        {f"recurra_durable_lag_seconds{{{_SERVER}}}": "0.1 4 0.1 6 4 4"},
    ),
    "RecurraStoreDown": Case(
        "5m",
        {f"recurra_store_up{{{_SERVER}}}": "1 1 0 0 0 0"},
        _INSTANCE,
        {f"recurra_store_up{{{_SERVER}}}": "1 0 1 1 0 1"},
    ),
    "RecurraModelLoadFailed": Case(
        "5m", {_FAILED: "0 0 1 1 1 1"}, {**_INSTANCE, "model": "m", "version": "2"}, {_FAILED: "0 1 0 0 0 0"}
    ),
    "RecurraStateNotFinite": Case(
        "5m",
        {_steps("state_not_finite"): "0 0 0 1 1 1"},
        {**_INSTANCE, "model": "m", "version": "1", "digest": "d", "outcome": "state_not_finite"},
        # Long ago, and what was refused at the door.
        {_steps("state_not_finite"): "7x6", _steps("input_not_finite"): "0+9x6"},
    ),
}


def test_prometheus_takes_the_rules() -> None:
    assert f"{sum(len(group['rules']) for group in GROUPS)} rules found" in promtool("check", "rules", str(RULES))


def test_every_alert_has_a_case() -> None:
    assert CASES.keys() == ALERTS.keys()


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_and_stays_quiet(alert: str, tmp_path: Path) -> None:
    case = CASES[alert]
    fired = {"exp_labels": {**case.labels, "severity": ALERTS[alert]["labels"]["severity"]}}
    _try(alert, case.at, case.fires, [fired], tmp_path)
    _try(alert, case.at, case.quiet, [], tmp_path)


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


def _try(alert: str, at: str, series: Series, expected: list[dict[str, Any]], folder: Path) -> None:
    # promtool compares annotations too: what they say is not what is tried here.
    groups = [
        {
            **group,
            "rules": [{key: value for key, value in rule.items() if key != "annotations"} for rule in group["rules"]],
        }
        for group in GROUPS
    ]
    (folder / "rules.yml").write_text(json.dumps({"groups": groups}))
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": alert, "exp_alerts": expected}],
    }
    file = folder / "test.yml"
    file.write_text(json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}))
    promtool("test", "rules", str(file))
