"""The dashboard to look at first: whether it answers, how fast, and how full it is."""

from deploy.grafana.panels import Board, Query, facts, graph, number
from deploy.grafana.promql import CHOSEN, OURS, RANGE, SERVERS_FAULT, VERSION, mean, quantiles, rate, total

_ANSWERED = f'{CHOSEN}, outcome=~"ok|replayed"'
_FAULTS = rate("recurra_errors_total", where=SERVERS_FAULT)
# What of its limits each server uses.
USED = {
    "sessions": "sum by (job, instance) (recurra_sessions) / on (job, instance) recurra_sessions_limit",
    "admission": "max by (job, instance) (recurra_admission_used_ratio)",
    "queue": "max by (job, instance) (recurra_queue_depth) / on (job, instance) recurra_queue_limit",
    "event loop": f"rate(recurra_loop_cpu_seconds_total[{RANGE}]) / recurra_workers",
    "model calls": f"sum by (job, instance) (rate(recurra_compute_seconds_total[{RANGE}])) "
    "/ on (job, instance) recurra_workers",
    "open files": f"process_open_fds / process_max_fds {OURS}",
}


def _labelled(limit: str, expr: str) -> str:
    """So that `or` keeps them apart."""
    return f'label_replace({expr}, "limit", "{limit}", "", "")'


NOW = (
    number(
        "Steps per second",
        Query(rate("recurra_steps_total"), "steps"),
        unit="reqps",
        means="Steps and chunks answered per second, whatever the outcome.",
        act="None while callers are at work: see whether they reach the server, and whether it drains.",
    ),
    number(
        "Failed by the server",
        Query(f"{_FAULTS} / ({_FAULTS} + {rate('recurra_steps_total', where=_ANSWERED)})", "failed"),
        unit="percentunit",
        red_from=0.001,
        means="Share of what was asked that no caller could have had: refused because the server is full, too late, "
        "the store away, or a bug; not what was over a caller's own bounds. The alerts on the error budget watch it "
        "against 99.9 %.",
        act="'Errors by reason' below names them, with (server); docs/errors.md says what each means.",
    ),
    number(
        "Step latency, p99",
        quantiles("recurra_step_seconds")[-1],
        unit="s",
        red_from=0.1,
        means="99 of 100 steps take no longer than this inside the server; the network comes on top.",
        act="See under 'Latency' whether they wait (add servers) or compute (a smaller model, other threads).",
    ),
    number(
        "Open sessions",
        Query(total("recurra_sessions"), "sessions"),
        unit="short",
        means="Sequences in progress, whose states the server keeps.",
        act="Near --max-sessions new ones are refused with CAPACITY: close what is done, shorten the idle "
        "timeout, or add servers.",
    ),
    number(
        "Nearest to a limit",
        Query(f"max ({' or '.join(_labelled(limit, expr) for limit, expr in USED.items())})", "used"),
        unit="percentunit",
        red_from=0.9,
        means=f"What the fullest server uses of what it can take, whichever is most: {', '.join(USED)}.",
        act="Above 90 % the next burst is refused: see under 'Saturation' which it is, and add servers.",
    ),
    number(
        "Servers draining",
        Query("sum (recurra_draining)", "draining"),
        unit="short",
        red_from=1,
        means="Servers that shut down: they finish open streams and open no sessions.",
        act="Expected during a deployment. Otherwise find out who sent the server SIGTERM.",
    ),
)

TRAFFIC = (
    graph(
        "Steps by outcome",
        [Query(rate("recurra_steps_total", by="outcome"), "{{outcome}}")],
        unit="reqps",
        means="Steps and chunks answered per second. `ok` was applied, `replayed` got its kept reply again, "
        "anything else is the reason of an error.",
        act="Look the reason up in docs/errors.md. Many `replayed` mean that callers retry: see the latency.",
    ),
    graph(
        "Errors by reason",
        [Query(rate("recurra_errors_total", by="reason, fault", where=""), "{{reason}} ({{fault}})")],
        unit="reqps",
        means="Calls, stream messages and rows answered with an error, of all models and of none, such as an "
        "unknown session. (server): no caller could have avoided it, so it costs error budget. (other): a caller's own "
        "doing or bound, or nobody's.",
        act="docs/errors.md says for each reason what the caller should do. `internal` is a bug: see the log.",
    ),
    graph(
        "Time steps by model",
        [Query(rate("recurra_timesteps_total", by="model, version"), VERSION)],
        unit="ops",
        means="Time steps applied per second; a chunk of T counts T.",
        act="A model that falls to zero while others go on has lost its callers, or they its version.",
    ),
)

LATENCY = (
    graph(
        "Step latency",
        quantiles("recurra_step_seconds"),
        unit="s",
        width=6,
        logarithmic=True,
        exemplars=True,
        means="Time of a step or chunk inside the server, from decoded request to reply ready. Accurate to "
        "the width of a histogram bucket. The dots are steps that have a trace.",
        act="The panels beside it tell where the time goes.",
    ),
    graph(
        "Waiting",
        quantiles("recurra_step_queue_seconds"),
        unit="s",
        width=6,
        logarithmic=True,
        means="The part of it before the step's (first) model call: the batch before it is still running.",
        act="It grows with load and with long chunks: add servers, or send shorter chunks.",
    ),
    graph(
        "Computing",
        quantiles("recurra_step_compute_seconds"),
        unit="s",
        width=6,
        logarithmic=True,
        means="The part of it in model calls.",
        act="It grows with the batch and with the chunk. If neither grew, the machine is busy or throttled: "
        "see the dashboard of the process.",
    ),
    graph(
        "Mean step, split",
        [
            Query(mean("recurra_step_queue_seconds"), "waiting"),
            Query(mean("recurra_step_compute_seconds"), "computing"),
            Query(mean("recurra_step_seconds"), "whole step"),
        ],
        unit="s",
        width=6,
        means="Mean time of a step: waiting, computing, and in all. What the two leave of the whole is "
        "Recurra's own work.",
        act="Mostly waiting: too few servers. Mostly computing: too large a model. Neither: a busy machine.",
    ),
)

BATCHES = (
    graph(
        "Batch size",
        [
            # Quantiles are interpolated inside a bucket; sessions are whole.
            *(Query(f"ceil({expr})", legend) for expr, legend in quantiles("recurra_batch_size")),
            Query(mean("recurra_batch_size"), "mean"),
        ],
        unit="short",
        means="Sessions in one model call. It grows by itself with load: whatever is ready runs together.",
        act="At --max-batch-size with steps waiting, raise the bound or add servers.",
    ),
    graph(
        "Model calls",
        [Query(rate("recurra_batch_size_count", by="model, version"), VERSION)],
        unit="ops",
        means="Model calls per second.",
        act="Many calls with small batches and waiting steps: one model runs too long for the others.",
    ),
    graph(
        "Steps waiting",
        [Query(total("recurra_queue_depth", by="model, version"), VERSION)],
        unit="short",
        means="Steps and chunks accepted and not yet answered.",
        act="It should return to nearly zero between bursts. If it only grows, callers send more than this "
        "server computes.",
    ),
)

SATURATION = (
    graph(
        "Sessions, queue and files, of their limits",
        [Query(f"max ({USED[limit]})", limit) for limit in ("sessions", "admission", "queue", "open files")],
        unit="percentunit",
        red_from=0.9,
        means="On the fullest server: open sessions of --max-sessions, steps that wait of --max-queue, and open files "
        "of `ulimit -n`. `admission`: late steps of those, or processor of that (75 %), from which on a model with a "
        "pace takes no new sessions, whichever is more.",
        act="At 100 % new sessions, or steps, are refused with CAPACITY; without files, connections hang. Add servers "
        "before that.",
    ),
    graph(
        "Processor, of one core",
        [Query(f"max ({USED[limit]})", limit) for limit in ("event loop", "model calls")],
        unit="percentunit",
        red_from=0.9,
        means="Time that the event loop's thread works, and that model calls take, on the busiest server: a mean "
        "over its workers. A small model runs on the event loop's thread and is in both. A model with a pace takes no "
        "new sessions before it is full: see `admission`.",
        act="Near 100 % steps wait for it. The event loop: add workers or servers. Model calls: a smaller model, or "
        "more servers.",
    ),
    graph(
        "Sessions refused",
        [Query(rate("recurra_sessions_refused_total", by="bound"), "{{bound}}")],
        unit="ops",
        means="Sessions per second that could not be opened: `max_sessions` are open; the steps of those that are open "
        "take too long for the model's pace (`latency`); or the caller has all that the access file allows "
        "(`identity_sessions`, `identity_state_bytes`).",
        act="`max_sessions`, `latency`: the server is full, add one. `identity_...`: it is that caller's own bound; "
        "raise it, or have them close sessions.",
    ),
)

SERVERS = (
    facts(
        "Servers",
        "recurra_build_info",
        means="What each server runs.",
        act="Differing versions outside a deployment: one was left behind.",
    ),
    facts(
        "Models",
        f"recurra_model_info{{{CHOSEN}}}",
        means="Every loaded version, and which one a request without a version gets (`latest`).",
        act="A model that is missing here failed to load: the server's log says why.",
    ),
)

OVERVIEW = Board(
    "Recurra: overview",
    "recurra-overview",
    "Is it answering, how fast, how full?",
    ("model", "version"),
    (
        ("Now", NOW),
        ("Traffic", TRAFFIC),
        ("Latency", LATENCY),
        ("Batches", BATCHES),
        ("Saturation", SATURATION),
        ("What runs", SERVERS),
    ),
)
