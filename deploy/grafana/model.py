"""One model, one version: its traffic, its latency, its batches and its sessions."""

from deploy.grafana.panels import Board, Query, buckets, facts, graph, number
from deploy.grafana.promql import CHOSEN, VERSION, mean, only, quantiles, rate, total

_BY = "model, version"

NOW = (
    number(
        "Steps per second",
        Query(rate("recurra_steps_total"), "steps"),
        unit="reqps",
        means="Steps and chunks of this model answered per second, whatever the outcome.",
        act="None while its callers are at work: see under 'Steps by outcome' what they get.",
    ),
    number(
        "p99, of its target",
        Query(
            f"max (histogram_quantile(0.99, {rate('recurra_step_seconds_bucket', by=f'le, {_BY}')}) "
            f"/ on ({_BY}) group_left () max by ({_BY}) (recurra_step_target_seconds{{{CHOSEN}}}))",
            "of the target",
        ),
        unit="percentunit",
        red_from=1,
        means="The time that 99 of 100 steps stay below, as a share of what the model's pace allows (--admit-below). "
        "Empty for a model that does not say how fast it is to be.",
        act="Above 100 % new sessions are refused until it falls: add servers.",
    ),
    number(
        "Open sessions",
        Query(total("recurra_sessions"), "sessions"),
        unit="short",
        means="Sequences in progress on this version.",
        act="An old version that keeps some: their callers have not ended them, and they stay on it until they do.",
    ),
    number(
        "Steps waiting",
        Query(total("recurra_queue_depth"), "waiting"),
        unit="short",
        means="Steps and chunks accepted and not yet answered.",
        act="Growing means that more arrives than can be computed: add servers or slow the callers.",
    ),
    number(
        "State not finite",
        Query(rate("recurra_steps_total", where=only("outcome", "state_not_finite")), "steps"),
        unit="reqps",
        red_from=1e-9,
        means="Steps per second that would have made a session's memory NaN or infinite. They were not applied, and "
        "the session stands as before: it is quarantined from its own input.",
        act="Look at the inputs of its callers. If they are sound, the model is unstable: train it anew, or reset "
        "the sessions.",
    ),
    number(
        "Versions not loaded",
        Query('sum (recurra_model_load_failed{model=~"$model"})', "failed"),
        unit="short",
        red_from=1,
        means="Versions of this model in the repository whose newest try to load failed. What was served before goes "
        "on.",
        act="The log says why (`model_not_loaded`); `recurra inspect` on the file tells more.",
    ),
)

TRAFFIC = (
    graph(
        "Steps by outcome",
        [Query(rate("recurra_steps_total", by="outcome"), "{{outcome}}")],
        unit="reqps",
        means="Steps and chunks answered per second: `ok`, `replayed` (the kept reply again), `cancelled` (nobody "
        "waited any more), or an error's reason.",
        act="Look the reason up in docs/errors.md. `deadline` and `cancelled`: it is too slow for its callers.",
    ),
    graph(
        "Time steps, by version",
        [Query(rate("recurra_timesteps_total", by=_BY), VERSION)],
        unit="ops",
        means="Time steps applied per second; a chunk of T counts T.",
        act="After a release the old version's share should fall to nothing as its sessions end.",
    ),
    graph(
        "Chunk length",
        [
            Query(
                f"{rate('recurra_timesteps_total')} / {rate('recurra_steps_total', where=only('outcome', 'ok'))}",
                "mean",
            )
        ],
        unit="short",
        means="Time steps in one message, on average; 1 where callers send step by step.",
        act="Long chunks make others wait: see 'Waiting'. --max-piece-steps cuts them into smaller pieces.",
    ),
)

LATENCY = (
    buckets(
        "Step latency, all of it",
        rate("recurra_step_seconds_bucket", by="le"),
        unit="s",
        means="How many steps took how long, per second: the brighter a field, the more.",
        act="Two bands: two kinds of steps, such as chunks and single ones, or a pause that comes and goes.",
    ),
    graph(
        "Step latency",
        quantiles("recurra_step_seconds"),
        unit="s",
        width=12,
        logarithmic=True,
        exemplars=True,
        means="Time of a step or chunk inside the server. The dots are steps that have a trace.",
        act="The two panels below tell where the time goes.",
    ),
    graph(
        "Waiting",
        quantiles("recurra_step_queue_seconds"),
        unit="s",
        logarithmic=True,
        means="The part of it before the step's (first) model call.",
        act="It grows with load and with long chunks: add servers, or send shorter chunks.",
    ),
    graph(
        "Computing",
        quantiles("recurra_step_compute_seconds"),
        unit="s",
        logarithmic=True,
        means="The part of it in model calls.",
        act="Larger than before with the same batches: the machine is busy, or the new version is slower.",
    ),
    graph(
        "Mean step, split",
        [
            Query(mean("recurra_step_queue_seconds"), "waiting"),
            Query(mean("recurra_step_compute_seconds"), "computing"),
            Query(mean("recurra_step_seconds"), "whole step"),
        ],
        unit="s",
        means="Mean time of a step: waiting, computing, and in all.",
        act="Mostly waiting: too few servers. Mostly computing: too large a model. Neither: a busy machine.",
    ),
)

BATCHES = (
    graph(
        "Batch size",
        [
            *(Query(f"ceil({expr})", legend) for expr, legend in quantiles("recurra_batch_size")),
            Query(mean("recurra_batch_size"), "mean"),
        ],
        unit="short",
        means="Sessions in one model call.",
        act="Always 1 under load: the graph's batch axis is fixed, or its steps differ in length. See "
        "docs/model-format.md.",
    ),
    graph(
        "Model calls",
        [Query(rate("recurra_batch_size_count", by=_BY), VERSION)],
        unit="ops",
        means="Model calls per second.",
        act="Many with small batches while steps wait: another model runs too long.",
    ),
    graph(
        "Time in model calls",
        [Query(rate("recurra_compute_seconds_total", by=_BY), VERSION)],
        unit="percentunit",
        means="Seconds a second that model calls take, over all servers and workers: 100 % is one core's worth.",
        act="Near 100 % for each worker: the model itself is the limit. Add servers, or a smaller model.",
    ),
)

SESSIONS = (
    graph(
        "Open sessions",
        [Query(total("recurra_sessions", by=_BY), VERSION)],
        unit="short",
        means="Sequences in progress.",
        act="Growing without more callers: somebody does not close sessions, and they only go by expiring.",
    ),
    graph(
        "Opened and ended",
        [
            Query(rate("recurra_sessions_opened_total"), "opened"),
            Query(rate("recurra_sessions_ended_total", by="reason"), "{{reason}}"),
            Query(rate("recurra_sessions_refused_total", by="bound"), "refused: {{bound}}"),
        ],
        unit="ops",
        means="Sessions of this model per second.",
        act="Many `expired`: callers vanish without closing. Refused: see the overview's 'Saturation'.",
    ),
    graph(
        "Memory of a session's states",
        [Query(f"{total('recurra_state_bytes')} / {total('recurra_sessions')}", "a session")],
        unit="bytes",
        means="Bytes of state that one session holds on this model; of several that are chosen, on average.",
        act="It does not change for one version. A new version that needs more shows here first.",
    ),
)

ABOUT = (
    facts(
        "Versions",
        f"recurra_model_info{{{CHOSEN}}}",
        width=24,
        means="The versions that are served, their digests, and which one a request without a version gets.",
        act="Differing digests of one version: servers have not the same file.",
    ),
)

MODEL = Board(
    "Recurra: model",
    "recurra-model",
    "One model and version: its traffic, its latency, its batches and its sessions.",
    ("model", "version"),
    (
        ("Now", NOW),
        ("Traffic", TRAFFIC),
        ("Latency", LATENCY),
        ("Batches", BATCHES),
        ("Sessions", SESSIONS),
        ("What is served", ABOUT),
    ),
)
