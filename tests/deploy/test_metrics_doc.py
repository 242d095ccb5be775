"""docs/metrics.md lists what a real server exports, with queries that Prometheus understands."""

from pathlib import Path
from urllib.request import urlopen

import onnx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.promql import check_promql, documented_metrics, metrics_in
from tests.support import models
from tests.support.server import running_server


@pytest.mark.e2e
def test_the_doc_lists_what_a_server_exports(tmp_path: Path) -> None:
    folder = tmp_path / "counter" / "1"
    folder.mkdir(parents=True)
    onnx.save(models.counter(), folder / "model.onnx")
    with running_server(tmp_path) as server, urlopen(server.metrics_url, timeout=10) as answer:  # noqa: S310
        exported = {
            (f"{family.name}_total" if family.type == "counter" else family.name, family.type)
            for family in text_string_to_metric_families(answer.read().decode())
        }
    assert {(metric.name, metric.kind) for metric in documented_metrics()} == exported


def test_every_query_uses_its_metric() -> None:
    for metric in documented_metrics():
        assert metric.name in metrics_in(metric.query)


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    check_promql([metric.query for metric in documented_metrics()], tmp_path)
