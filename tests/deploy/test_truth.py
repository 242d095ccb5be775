"""Every line of every panel, and every figure behind an alert, agrees with what callers saw of real servers."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest
import yaml
from recurra.v1 import sessions_pb2

from deploy.grafana.draw import Source, draw_all
from tests.deploy.expected import Check, Truth, about, between, exactly, expected, expected_facts, slow_p99
from tests.deploy.machine import use_of
from tests.deploy.promql import DASHBOARDS, ROOT, panels, promtool
from tests.deploy.scene import HASTY_SECONDS, LSTM_SECONDS, Scene, running_scene
from tests.deploy.seen import Seen
from tests.support.prometheus import Labels, Prometheus, running_prometheus
from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e

_RULES = ROOT / "deploy" / "prometheus" / "recurra.rules.yml"
_SECONDS = 25.0
_SCRAPE = 0.5
_ONE, _MANY = 16, 9


class Act(NamedTuple):
    """A stretch of load and trouble, and what is known of it."""

    truth: Truth
    since_start: Seen
    ended: float
    alerts_before: set[str]
    alerts_after: set[str]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with running_scene(tmp_path_factory.mktemp("scene")) as scene:
        yield scene


@pytest.fixture(scope="module")
def prometheus(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with running_prometheus(tmp_path_factory.mktemp("prometheus"), _RULES, scene.targets, every=_SCRAPE) as prometheus:
        yield prometheus


@pytest.fixture(scope="module")
def act(scene: Scene, prometheus: Prometheus) -> Act:
    """Warm up, so that all series are there; then load and trouble, with rest before and after."""
    return asyncio.run(_play(scene, prometheus))


async def _play(scene: Scene, prometheus: Prometheus) -> Act:
    async with scene.sessions(_ONE, _MANY) as sessions:
        await scene.step(sessions, 1.0, pace=0.1)
        quiet = await asyncio.to_thread(prometheus.settle)
        alerts_before = prometheus.active_alerts()
        await scene.trouble(1)
        for _ in range(2):  # the scrape before the stretch counts too, and must have seen all of that
            began = await asyncio.to_thread(prometheus.settle)
        warm, scene.seen = scene.seen, Seen()
        before = use_of(scene.one), use_of(scene.many)
        scene.spoil_a_model()
        await asyncio.gather(scene.step(sessions, _SECONDS, pace=0.1), scene.trouble(12))
        await scene.fill(refused=100)
        ended = await asyncio.to_thread(prometheus.settle)
        use = use_of(scene.one).since(before[0]), use_of(scene.many).since(before[1])
        assert ended > began > quiet
        streams = Counter({use[0].instance: _ONE, use[1].instance: _MANY})
        truth = Truth(scene, scene.seen, ended - began, *use, streams)
        return Act(truth, _sum(warm, scene.seen), ended, alerts_before, prometheus.active_alerts())


def _sum(one: Seen, other: Seen) -> Seen:
    return Seen(
        steps=one.steps + other.steps,
        outcomes=one.outcomes + other.outcomes,
        errors=one.errors + other.errors,
        ended=one.ended + other.ended,
    )


_LINES = [
    pytest.param(str(panel["title"]), target["expr"], target["legendFormat"], id=f"{where} - {target['legendFormat']}")
    for where, panel in panels()
    if panel["type"] != "table"
    for target in panel["targets"]  # type: ignore[attr-defined]
]
_P99 = [line for line in _LINES if str(line.values[0]).startswith("Step latency") and line.values[2] == "p99"]
_TABLES = [
    pytest.param(str(panel["title"]), panel["targets"][0]["expr"], id=where)  # type: ignore[index]
    for where, panel in panels()
    if panel["type"] == "table"
]


@pytest.mark.parametrize(("title", "expr", "legend"), _LINES)
def test_a_line_of_a_panel(act: Act, prometheus: Prometheus, title: str, expr: str, legend: str) -> None:
    values = _ask(prometheus, act, expr, legend)
    assert values, "it has no data"
    check: Check | None = expected(act.truth).get((title, legend))
    assert check is not None, "nothing says what it must be: tell it in tests/deploy/expected.py"
    check(values)


@pytest.mark.parametrize(("title", "expr", "legend"), _P99)
def test_the_p99_of_the_model_that_is_chosen(
    act: Act, prometheus: Prometheus, title: str, expr: str, legend: str
) -> None:
    slow_p99(act.truth.seen)(_ask(prometheus, act, expr.replace("$model", "hasty"), legend))


@pytest.mark.parametrize(("title", "expr"), _TABLES)
def test_a_table(act: Act, prometheus: Prometheus, title: str, expr: str) -> None:
    rows = [labels for labels, _ in prometheus.query(_chosen(expr, act), act.ended)]
    wanted = expected_facts()[title]
    assert len(rows) == len(wanted)
    for facts in wanted:
        assert any(facts.items() <= row.items() for row in rows), f"{facts} is not among {rows}"


def test_nothing_is_expected_of_panels_that_are_not_there(act: Act) -> None:
    assert expected(act.truth).keys() == {(str(line.values[0]), str(line.values[2])) for line in _LINES}
    assert expected_facts().keys() == {str(table.values[0]) for table in _TABLES}


def test_the_figures_behind_the_alerts(act: Act, prometheus: Prometheus) -> None:
    """They look back further than this has been going on: so they have seen it all."""
    rules = [rule for group in yaml.safe_load(_RULES.read_text())["groups"] for rule in group["rules"]]
    seen, lines = act.since_start, expected(act.truth)
    failed = seen.faults / (seen.faults + seen.outcomes["ok"] + seen.outcomes["replayed"])
    ratios = {f"job:recurra_failed:ratio_rate{window}": about(failed) for window in ("5m", "30m", "1h", "6h")}
    checks: dict[str, Check] = {
        **ratios,
        "job_model_version:recurra_step_target_seconds:min": exactly(
            {"counter": 0.1, "hasty": HASTY_SECONDS / 4, "lstm": LSTM_SECONDS / 4}
        ),
        "job:recurra_sessions_expired:increase5m": about(seen.ended["expired"]),
        "job:recurra_sessions_expired:usual5m": between(-1, 1),
    }
    for rule in rules:
        name = rule.get("record")
        found = prometheus.query(rule["expr"], act.ended)
        if name in checks:
            checks[name]({labels.get("model", ""): value for labels, value in found})
        elif name == "job_model_version:recurra_step_seconds:p99_rate5m":
            by_model = {labels["model"]: value for labels, value in found}
            assert by_model.keys() == {"lstm", "counter", "hasty"}
            lines["p99, of its target", "of the target"]({"": by_model["hasty"] * 4 / HASTY_SECONDS})
        elif name == "job_instance:recurra_used:ratio":
            limit = rule["labels"]["limit"]
            (one,) = (value for labels, value in found if labels["instance"] == act.truth.one.instance)
            assert len(found) == 2
            assert one == {"sessions": 1.0, "queue": 0.0}.get(limit, one)
            assert 0 <= one <= 1
        else:
            assert name is None, f"nothing says what {name} must be"
        if name is not None:
            assert len(prometheus.query(name, act.ended)) >= len(found), "it was not recorded"


def test_it_is_seen_that_sessions_are_refused_for_their_latency(act: Act, prometheus: Prometheus) -> None:
    """For as long as they are; what is asked of Prometheus at the end of the stretch is after that."""
    most = f"max by (model) (max_over_time(recurra_admission_used_ratio[{round(act.truth.seconds)}s]))"
    assert {labels["model"]: value for labels, value in prometheus.query(most, act.ended)} == {"hasty": 1, "lstm": 0}


@pytest.mark.parametrize("kind", ["one", "many"])
def test_metrics_are_named_as_prometheus_would_have_them(act: Act, scene: Scene, kind: str) -> None:
    server: ServerProcess = getattr(scene, kind)
    with urlopen(server.metrics_url, timeout=10) as answer:  # noqa: S310
        promtool("check", "metrics", told=answer.read().decode())


def test_alerts_come_with_the_trouble_and_not_before(act: Act) -> None:
    assert act.alerts_before == set()
    assert act.alerts_after == {
        "RecurraErrorBudgetBurnsFast",
        "RecurraErrorBudgetBurnsSlowly",
        "RecurraModelLoadFailed",
        "RecurraNearLimit",
        "RecurraSessionsExpire",
        "RecurraStateNotFinite",
        "RecurraStepsSlow",
    }


def test_the_dashboards_can_be_drawn(act: Act, prometheus: Prometheus, tmp_path: Path) -> None:
    draw_all(tmp_path, Source(prometheus.url, act.ended - act.truth.seconds, act.ended, over=5))
    assert {path.stem for path in tmp_path.iterdir()} == {path.stem for path in DASHBOARDS.iterdir()}


def test_a_dead_store_is_seen(act: Act, scene: Scene, prometheus: Prometheus) -> None:
    died, refused = asyncio.run(_lose_the_store(scene))
    prometheus.wait_until("sum(1 - recurra_store_up) == 2 and max(recurra_durable_lag_seconds) > 5")
    now = prometheus.settle()
    (lag,) = _ask(prometheus, act, _expr("Not durable for"), "", now).values()
    assert now - died - 0.5 <= lag <= now - died + 0.5
    (servers,) = _ask(prometheus, act, _expr("Servers without their store"), "", now).values()
    assert servers == 2, "each looks at the store by itself"
    failures = prometheus.query('recurra_store_request_failures_total{operation="save"}', now)
    assert sum(value for _, value in failures) >= 1
    reasons = prometheus.query('sum(recurra_errors_total{reason="store_unavailable"})', now)
    assert [value for _, value in reasons] == [refused]
    assert {"RecurraStoreDown", "RecurraDurableLag"} <= prometheus.active_alerts()

    scene.valkey.start()
    prometheus.wait_until("sum(1 - recurra_store_up) == 0")


async def _lose_the_store(scene: Scene) -> tuple[float, int]:
    """Returns when a change began to wait for the store, and how many were refused for its sake."""
    caller = scene.caller(scene.many)
    session = await caller.open("counter", durability=sessions_pb2.DURABILITY_ASYNC)
    died = time.time()
    scene.kill_store()
    await caller.step(session, 1.0)
    while await caller.open("counter", durability=sessions_pb2.DURABILITY_SYNC):
        pass
    return died, scene.seen.errors["store_unavailable", "server"]


def test_a_drain_is_seen(act: Act, scene: Scene, prometheus: Prometheus) -> None:
    async def drain() -> list[float]:
        async with scene.sessions(0, 1) as (session,):
            await session.step([0.0] * 16)
            scene.many.terminate()
            await asyncio.to_thread(prometheus.wait_until, f"({_expr('Servers draining')}) > 0")
            return [value for _, value in prometheus.query(_expr("Servers draining"))]

    assert asyncio.run(drain()) == [1]
    assert scene.many.wait() == 0
    prometheus.wait_until("ALERTS{alertname='RecurraDown'}")


# --- asking ------------------------------------------------------------------------------


def _expr(title: str) -> str:
    return next(str(line.values[1]) for line in _LINES if line.values[0] == title)


def _chosen(expr: str, act: Act) -> str:
    """As Grafana sends it: everything chosen, rates over the stretch, from the scrapes before it on."""
    milliseconds = round((act.truth.seconds + _SCRAPE) * 1e3)
    return re.sub(r"\$(model|version|instance)", ".*", expr.replace("$__rate_interval", f"{milliseconds}ms"))


def _ask(prometheus: Prometheus, act: Act, expr: str, legend: str, at: float | None = None) -> dict[str, float]:
    found = prometheus.query(_chosen(expr, act), at or act.ended)
    return {_name(legend, labels): value for labels, value in found}


def _name(legend: str, labels: Labels) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend)
