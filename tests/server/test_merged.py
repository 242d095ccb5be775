"""Metrics of several workers as those of one."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from recurra_server.telemetry.exporter import Exporter
from recurra_server.telemetry.merged import MergedMetrics

from tests.support.server import Samples


class Worker:
    """A process that counts, as its metrics tell."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.steps = Counter("steps", "Steps.", ["model"], registry=self.registry)
        self.seconds = Histogram("step_seconds", "Time.", buckets=(1, 2), registry=self.registry)
        self.sessions = Gauge("sessions", "Open.", registry=self.registry)
        self.draining = Gauge("recurra_draining", "1 or 0.", registry=self.registry)
        self.lag = Gauge("recurra_durable_lag_seconds", "Oldest change.", registry=self.registry)
        self.target = Gauge("recurra_step_target_seconds", "Allowed.", ["model"], registry=self.registry)
        self.admitted = Gauge("recurra_admission_used_ratio", "In use.", ["model"], registry=self.registry)
        self.load_failed = Gauge("recurra_model_load_failed", "1 or 0.", ["model"], registry=self.registry)
        self.store_up = Gauge("recurra_store_up", "1 or 0.", registry=self.registry)
        self.workers = Gauge("recurra_workers", "Processes.", registry=self.registry)
        self.workers.set(1)
        self.info = Gauge("recurra_build_info", "Always 1.", ["version"], registry=self.registry)
        self.started = Gauge("process_start_time_seconds", "When.", registry=self.registry)
        self.info.labels("1").set(1)

    @contextmanager
    def serving(self) -> Iterator[int]:
        server, thread = start_http_server(0, "127.0.0.1", self.registry)
        yield server.server_port
        server.shutdown()
        server.server_close()
        thread.join()


def scrape(merged: MergedMetrics) -> Samples:
    return Samples(generate_latest(merged.registry).decode())


def test_counts_are_added_up_and_states_are_not() -> None:
    one, other = Worker(), Worker()
    for worker, many in ((one, 3), (other, 4)):
        worker.steps.labels("a").inc(many)
        worker.sessions.set(many)
        worker.started.set(100 * many)
        worker.seconds.observe(many - 2.5)
        worker.lag.set(many)
        worker.target.labels("a").set(0.25)
        worker.admitted.labels("a").set(many / 10)
        worker.load_failed.labels("a").set(1)
        worker.store_up.set(many == 3)
    other.steps.labels("b").inc(5)
    other.draining.set(1)
    merged = MergedMetrics()
    with one.serving() as port, other.serving() as other_port:
        merged.add(0, port)
        merged.add(1, other_port)
        samples = scrape(merged)
    for name, labels, value in (
        ("recurra_workers", {}, 2),
        ("steps_total", {"model": "a"}, 7),
        ("steps_total", {"model": "b"}, 5),
        ("sessions", {}, 7),
        ("step_seconds_count", {}, 2),
        ("step_seconds_sum", {}, 2.0),
        ("step_seconds_bucket", {"le": "1.0"}, 1),
        ("step_seconds_bucket", {"le": "2.0"}, 2),
        ("recurra_draining", {}, 1),
        ("recurra_durable_lag_seconds", {}, 4),
        ("recurra_step_target_seconds", {"model": "a"}, 0.25),
        ("recurra_admission_used_ratio", {"model": "a"}, 0.4),
        ("recurra_model_load_failed", {"model": "a"}, 1),
        ("recurra_store_up", {}, 0),
        ("recurra_build_info", {"version": "1"}, 1),
        ("process_start_time_seconds", {}, 300),
    ):
        assert samples.get(name, **labels) == value, name


@contextmanager
def saying(answer: bytes, port: int) -> Iterator[None]:
    """Something that says this to whoever connects."""
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            with server.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


NO_METRICS = {
    "nothing": b"",
    "an error": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "a part": b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n# TYPE",
    "no HTTP": b"nonsense\r\n\r\n",
    "no metrics": b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nnonsense",
    "no text": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\xff",
}


def test_a_worker_that_does_not_answer_keeps_its_counts_and_nothing_else() -> None:
    well, ill, merged = Worker(), Worker(), MergedMetrics()
    for worker, many in ((well, 1), (ill, 10)):
        worker.steps.labels("a").inc(many)
        worker.sessions.set(many)
        worker.seconds.observe(0.5)
    with well.serving() as port:
        merged.add(0, port)
        with ill.serving() as other_port:
            merged.add(1, other_port)
            assert scrape(merged).get("sessions") == 11
        for what, answer in NO_METRICS.items():
            with saying(answer, other_port):
                samples = scrape(merged)
            told = [samples.get(name) for name in ("recurra_workers", "sessions", "step_seconds_count")]
            assert told == [1, 1, 2], what
            assert samples.get("steps_total", model="a") == 11, what


def test_workers_come_and_go_while_one_is_slow_to_answer() -> None:
    slow, other, merged = Worker(), Worker(), MergedMetrics()
    slow.steps.labels("a").inc(10)
    slow.sessions.set(10)
    asked, may_answer = threading.Event(), threading.Event()
    with slow.serving() as port, other.serving() as other_port, ThreadPoolExecutor() as pool:
        merged.add(0, port)
        scrape(merged)

        def answer() -> float:
            asked.set()
            may_answer.wait()
            return 10

        for come_or_go, sessions in ((partial(merged.add, 1, other_port), 10), (partial(merged.remove, 0), 0)):
            asked.clear()
            may_answer.clear()
            slow.sessions.set_function(answer)
            scraping = pool.submit(scrape, merged)
            asked.wait()
            come_or_go()
            may_answer.set()
            samples = scraping.result()
            assert samples.get("sessions") == sessions
            assert samples.get("steps_total", model="a") == 10, "it is counted once"


def test_no_count_goes_back_when_a_worker_dies() -> None:
    first, second = Worker(), Worker()
    first.steps.labels("a").inc(10)
    first.sessions.set(10)
    merged = MergedMetrics()
    with first.serving() as port:
        merged.add(0, port)
        scrape(merged)
    merged.remove(0)
    with second.serving() as port:
        merged.add(0, port)
        second.steps.labels("a").inc()
        samples = scrape(merged)
    assert samples.get("steps_total", model="a") == 11
    assert samples.get("sessions") == 0, "its sessions went with it"


def test_the_newest_example_of_a_bucket_stays() -> None:
    one, two, merged = Worker(), Worker(), MergedMetrics()
    one.seconds.observe(0.5, {"trace_id": "a"})
    two.seconds.observe(0.7, {"trace_id": "b"})
    one.seconds.observe(1.5, {"trace_id": "c"})
    with one.serving() as first, two.serving() as second:
        merged.add(0, first)
        merged.add(1, second)
        (family,) = (family for family in merged.collect() if family.name == "step_seconds")
    examples = {
        sample.labels["le"]: sample.exemplar.labels["trace_id"]
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert examples == {"1.0": "b", "2.0": "c"}


def test_workers_do_their_work_as_long_as_one_does() -> None:
    merged, exporters = MergedMetrics(), []
    assert merged.unhealthy() == "", "they are being started"
    for place, (trouble, told) in enumerate((("it hangs", "it hangs"), ("", ""))):
        exporters.append(Exporter(CollectorRegistry(), lambda why=trouble: why, lambda: "it drains", "127.0.0.1", 0))  # type: ignore[misc]
        merged.add(place, exporters[-1].port)
        assert merged.unhealthy() == told
    assert merged.unready() == "it drains"
    for exporter in exporters:
        exporter.close()
