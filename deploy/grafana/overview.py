"""The dashboard to look at first: is it answering, how fast, how full."""

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import Query, add_row, empty_dashboard, facts, graph, number

# What the viewer chose at the top, and the range over which a rate is taken.
CHOSEN = 'model=~"$model", version=~"$version"'
RANGE = "$__rate_interval"
# Restricts a process metric to Recurra's servers: every target of Prometheus has those.
OURS = "* on (job, instance) recurra_build_info"


def overview() -> Dashboard:
    """Traffic, latency, batches, sessions and the process."""
    dashboard = empty_dashboard(
        "Recurra: overview", "recurra-overview", "Traffic, latency, batches, sessions and the server process."
    )
    _now(dashboard)
    _traffic(dashboard)
    _latency(dashboard)
    _batches(dashboard)
    _sessions(dashboard)
    _store(dashboard)
    _process(dashboard)
    return dashboard


def _rate(counter: str, by: str = "", extra: str = CHOSEN) -> str:
    grouping = f" by ({by})" if by else ""
    selector = f"{{{extra}}}" if extra else ""
    return f"sum{grouping} (rate({counter}{selector}[{RANGE}]))"


def _quantiles(histogram: str, prefix: str = "") -> list[Query]:
    buckets = _rate(f"{histogram}_bucket", by="le")
    return [Query(f"histogram_quantile({q}, {buckets})", f"{prefix}p{q * 100:g}") for q in (0.5, 0.95, 0.99)]


def _mean(histogram: str) -> str:
    return f"{_rate(f'{histogram}_sum')} / {_rate(f'{histogram}_count')}"


def _now(dashboard: Dashboard) -> None:
    steps = _rate("recurra_steps_total")
    answered = _rate("recurra_steps_total", extra=f'{CHOSEN}, outcome=~"ok|replayed"')
    add_row(
        dashboard,
        "Now",
        [
            number(
                "Steps per second",
                Query(steps, "steps"),
                unit="reqps",
                means="Steps and chunks answered per second, whatever the outcome.",
                act="None while callers are at work: see whether they reach the server, and whether it drains.",
            ),
            number(
                "Steps that failed",
                Query(f"1 - {answered} / {steps}", "failed"),
                unit="percentunit",
                red_from=0.01,
                means="Share of the steps that were answered with an error.",
                act="'Steps by outcome' below names the reason; docs/errors.md says what each means.",
            ),
            number(
                "Step latency, p99",
                _quantiles("recurra_step_seconds")[-1],
                unit="s",
                red_from=0.1,
                means="99 of 100 steps take no longer than this inside the server; the network comes on top.",
                act="See under 'Latency' whether they wait (add servers) or compute (a smaller model, other threads).",
            ),
            number(
                "Open sessions",
                Query(f"sum (recurra_sessions{{{CHOSEN}}})", "sessions"),
                unit="short",
                means="Sequences in progress, whose states the server keeps.",
                act="Near --max-sessions new ones are refused with CAPACITY: close what is done, shorten the idle "
                "timeout, or add servers.",
            ),
            number(
                "Steps waiting",
                Query(f"sum (recurra_queue_depth{{{CHOSEN}}})", "waiting"),
                unit="short",
                means="Steps and chunks accepted and not yet answered.",
                act="Growing means that more arrives than can be computed; at --max-queue, steps are refused with "
                "CAPACITY. Add servers or slow the callers.",
            ),
            number(
                "Servers draining",
                Query("sum (recurra_draining)", "draining"),
                unit="short",
                red_from=1,
                means="Servers that shut down: they finish open streams and open no sessions.",
                act="Expected during a deployment. Otherwise find out who sent the server SIGTERM.",
            ),
        ],
    )


def _traffic(dashboard: Dashboard) -> None:
    add_row(
        dashboard,
        "Traffic",
        [
            graph(
                "Steps by outcome",
                [Query(_rate("recurra_steps_total", by="outcome"), "{{outcome}}")],
                unit="reqps",
                means="Steps and chunks answered per second. `ok` was applied, `replayed` got its kept reply again, "
                "anything else is the reason of an error.",
                act="Look the reason up in docs/errors.md. Many `replayed` mean that callers retry: see the latency.",
            ),
            graph(
                "Time steps by model",
                [Query(_rate("recurra_timesteps_total", by="model, version"), "{{model}}/{{version}}")],
                unit="ops",
                means="Time steps applied per second; a chunk of T counts T.",
                act="A model that falls to zero while others go on has lost its callers, or they its version.",
            ),
            graph(
                "Errors by reason",
                [Query(_rate("recurra_errors_total", by="reason", extra=""), "{{reason}}")],
                unit="reqps",
                means="Calls, stream messages and rows answered with an error, of all models and of none, such as an "
                "unknown session.",
                act="docs/errors.md says for each reason what the caller should do. `internal` is a bug: see the log.",
            ),
        ],
    )


def _latency(dashboard: Dashboard) -> None:
    split = [
        Query(_mean("recurra_step_queue_seconds"), "waiting"),
        Query(_mean("recurra_step_compute_seconds"), "computing"),
        Query(_mean("recurra_step_seconds"), "whole step"),
    ]
    add_row(
        dashboard,
        "Latency",
        [
            graph(
                "Step latency",
                _quantiles("recurra_step_seconds"),
                unit="s",
                width=6,
                logarithmic=True,
                means="Time of a step or chunk inside the server, from decoded request to reply ready. Accurate to "
                "the width of a histogram bucket.",
                act="The panels beside it tell where the time goes.",
            ),
            graph(
                "Waiting",
                _quantiles("recurra_step_queue_seconds"),
                unit="s",
                width=6,
                logarithmic=True,
                means="The part of it before the step's (first) model call: the batch before it is still running.",
                act="It grows with load and with long chunks: add servers, or send shorter chunks.",
            ),
            graph(
                "Computing",
                _quantiles("recurra_step_compute_seconds"),
                unit="s",
                width=6,
                logarithmic=True,
                means="The part of it in model calls.",
                act="It grows with the batch and with the chunk. If neither grew, the machine is busy or throttled: "
                "see the process' CPU.",
            ),
            graph(
                "Mean step, split",
                split,
                unit="s",
                width=6,
                means="Mean time of a step: waiting, computing, and in all. What the two leave of the whole is "
                "Recurra's own work.",
                act="Mostly waiting: too few servers. Mostly computing: too large a model. Neither: a busy machine.",
            ),
        ],
    )


def _batches(dashboard: Dashboard) -> None:
    add_row(
        dashboard,
        "Batches",
        [
            graph(
                "Batch size",
                [
                    # Quantiles are interpolated inside a bucket; sessions are whole.
                    *(Query(f"ceil({expr})", legend) for expr, legend in _quantiles("recurra_batch_size")),
                    Query(_mean("recurra_batch_size"), "mean"),
                ],
                unit="short",
                means="Sessions in one model call. It grows by itself with load: whatever is ready runs together.",
                act="At --max-batch-size with steps waiting, raise the bound or add servers.",
            ),
            graph(
                "Model calls",
                [Query(_rate("recurra_batch_size_count", by="model, version"), "{{model}}/{{version}}")],
                unit="ops",
                means="Model calls per second.",
                act="Many calls with small batches and waiting steps: one model runs too long for the others.",
            ),
            graph(
                "Steps waiting",
                [Query(f"sum by (model, version) (recurra_queue_depth{{{CHOSEN}}})", "{{model}}/{{version}}")],
                unit="short",
                means="Steps and chunks accepted and not yet answered.",
                act="It should return to nearly zero between bursts. If it only grows, callers send more than this "
                "server computes.",
            ),
        ],
    )


def _sessions(dashboard: Dashboard) -> None:
    add_row(
        dashboard,
        "Sessions",
        [
            graph(
                "Open sessions",
                [Query(f"sum by (model, version) (recurra_sessions{{{CHOSEN}}})", "{{model}}/{{version}}")],
                unit="short",
                width=6,
                means="Sequences in progress.",
                act="Growing without more callers: somebody does not close sessions, and they only go by expiring.",
            ),
            graph(
                "Opened and ended",
                [
                    Query(_rate("recurra_sessions_opened_total"), "opened"),
                    Query(_rate("recurra_sessions_ended_total", by="reason"), "{{reason}}"),
                    Query(_rate("recurra_sessions_refused_total", by="bound"), "refused: {{bound}}"),
                ],
                unit="ops",
                width=6,
                means="Sessions opened per second, and ended: `closed` by the caller, or `expired` unused. Refused: "
                "`max_sessions` are open, or the steps of those that are open take too long (`latency`).",
                act="Many `expired`: callers vanish without closing, or pause for longer than the idle timeout and "
                "will meet SESSION_EXPIRED. Any refused for `latency`: the server is full, add one.",
            ),
            graph(
                "Memory of states",
                [
                    Query(f"sum (recurra_state_bytes{{{CHOSEN}}})", "held by sessions"),
                    Query(f"sum (recurra_state_allocated_bytes{{{CHOSEN}}})", "set aside"),
                ],
                unit="bytes",
                width=6,
                means="Bytes of state that open sessions hold, and that the server has set aside for states.",
                act="It follows the number of open sessions; what was set aside is used again.",
            ),
            graph(
                "Open streams",
                [Query("sum by (instance) (recurra_streams)", "{{instance}}")],
                unit="short",
                width=6,
                means="Open `StreamSteps` streams. One stream may carry many sessions.",
                act="A sudden fall is a lost network or a restarted gateway; sessions outlive it until they expire.",
            ),
        ],
    )


def _store(dashboard: Dashboard) -> None:
    add_row(
        dashboard,
        "Durable sessions",
        [
            graph(
                "Checkpoints",
                [Query(_rate("recurra_checkpoints_total", by="outcome", extra=""), "{{outcome}}")],
                unit="ops",
                means="Checkpoints per second. `stale`: another server had taken the session over; `failed`: the store "
                "did not take it, and it is sent again.",
                act="Many `failed`: see whether the store can be reached and has memory left.",
            ),
            graph(
                "Not in the store yet",
                [
                    Query("max (recurra_durable_lag_seconds)", "oldest change"),
                    Query("sum (1 - recurra_store_up)", "servers without their store"),
                ],
                unit="s",
                means="Age of the oldest change that a crash would take back, and servers that cannot reach the store.",
                act="Above a few --checkpoint-interval, the store is slow or away: sessions go on, but a crash costs "
                "their callers more steps to send again.",
            ),
            graph(
                "Sessions taken over",
                [Query(_rate("recurra_sessions_taken_over_total", extra=""), "taken over")],
                unit="ops",
                means="Sessions per second that go on on another server than before.",
                act="Expected after a crash and during a deployment. Otherwise calls of a session do not keep to its "
                "server: see how they are routed.",
            ),
        ],
    )


def _process(dashboard: Dashboard) -> None:
    add_row(
        dashboard,
        "Process",
        [
            graph(
                "CPU",
                [Query(f"rate(process_cpu_seconds_total[{RANGE}]) {OURS}", "{{instance}}")],
                unit="short",
                width=6,
                means="Processor cores in use by the server process.",
                act="One core is the event loop's bound. Near it with steps waiting, add servers.",
            ),
            graph(
                "Memory",
                [Query(f"process_resident_memory_bytes {OURS}", "{{instance}}")],
                unit="bytes",
                width=6,
                means="Resident memory of the server process.",
                act="Growing while 'Memory of states' does not: a leak; report it with the time of its beginning.",
            ),
            graph(
                "Open files",
                [
                    Query(f"process_open_fds {OURS}", "{{instance}}"),
                    Query(f"process_max_fds {OURS}", "{{instance}} limit"),
                ],
                unit="short",
                width=6,
                logarithmic=True,
                means="File descriptors in use, most of them connections, and how many are allowed.",
                act="Near the limit, connections are refused: raise `ulimit -n`, or let callers share connections.",
            ),
            graph(
                "Garbage collections",
                [
                    Query(
                        f"sum by (instance, generation) (rate(python_gc_collections_total[{RANGE}]) "
                        "* on (job, instance) group_left () recurra_build_info)",
                        "{{instance}} generation {{generation}}",
                    )
                ],
                unit="ops",
                width=6,
                means="Runs of Python's garbage collector per second. Those of generation 2 stop the server longest.",
                act="Often and with a rising p99: fewer, longer-lived sessions and connections help.",
            ),
            number(
                "Processes",
                Query("sum (recurra_workers)", "processes"),
                unit="short",
                means="Server processes, over all servers (`--workers`).",
                act="Fewer than were started: one has died and is started anew; see the log for `worker_died`.",
            ),
            number(
                "Shortest uptime",
                Query(f"min ((time() - process_start_time_seconds) {OURS})", "uptime"),
                unit="s",
                means="Time since the youngest server started. Sessions do not outlive their server.",
                act="Shorter than expected: it crashed or was restarted; see its log and the orchestrator's.",
            ),
            facts(
                "Servers",
                "recurra_build_info",
                width=8,
                means="What each server runs.",
                act="Differing versions outside a deployment: one was left behind.",
            ),
            facts(
                "Models",
                f"recurra_model_info{{{CHOSEN}}}",
                width=12,
                means="Every loaded version, and which one a request without a version gets (`latest`).",
                act="A model that is missing here failed to load: the server's log says why.",
            ),
        ],
    )
