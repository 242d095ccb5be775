"""Sessions, and what of them outlives a server."""

from deploy.grafana.panels import Board, Query, graph, number
from deploy.grafana.promql import VERSION, only, quantiles, rate, total

NOW = (
    number(
        "Open sessions",
        Query(total("recurra_sessions"), "sessions"),
        unit="short",
        means="Sequences in progress, whose states the servers keep.",
        act="A sudden fall is a server that died, or callers that all ended: see 'Ended'.",
    ),
    number(
        "Expired, of those that ended",
        Query(
            f"{rate('recurra_sessions_ended_total', where=only('reason', 'expired'))} "
            f"/ {rate('recurra_sessions_ended_total')}",
            "expired",
        ),
        unit="percentunit",
        red_from=0.5,
        means="Share of the ended sessions that nobody closed.",
        act="Callers vanish without closing, or pause for longer than the idle timeout and will meet "
        "SESSION_EXPIRED: have them close, or ask for a longer idle_timeout.",
    ),
    number(
        "Sessions refused",
        Query(rate("recurra_sessions_refused_total"), "refused"),
        unit="ops",
        red_from=1e-9,
        means="Sessions per second that could not be opened, for a bound.",
        act="See under 'Opened' for which: `max_sessions` or `latency` is a full server, add one; `identity_...` is a "
        "caller's own bound. Callers are told when to come back.",
    ),
    number(
        "Servers without their store",
        Query("sum (1 - recurra_store_up)", "servers"),
        unit="short",
        red_from=1,
        means="Servers whose last request to the store of checkpoints failed. ASYNC sessions go on without getting "
        "durable; SYNC steps and new durable sessions are refused.",
        act="See whether the store runs and can be reached from there; recurra_store_request_failures_total says "
        "what fails.",
    ),
    number(
        "Not durable for",
        Query("max (recurra_durable_lag_seconds)", "oldest change"),
        unit="s",
        red_from=5,
        means="Age of the oldest change that is not in the store: what a crash now would take back.",
        act="Above a few --checkpoint-interval, the store is slow or away: see 'Requests to the store'.",
    ),
    number(
        "Taken over",
        Query(rate("recurra_sessions_taken_over_total", where=""), "sessions"),
        unit="ops",
        means="Sessions per second that go on on another server than before.",
        act="Expected after a crash and during a deployment. Otherwise calls of a session do not keep to its server: "
        "see how they are routed.",
    ),
)

LIFE = (
    graph(
        "Open sessions",
        [Query(total("recurra_sessions", by="model, version"), VERSION)],
        unit="short",
        width=6,
        means="Sequences in progress.",
        act="Growing without more callers: somebody does not close sessions, and they only go by expiring.",
    ),
    graph(
        "Opened",
        [
            Query(rate("recurra_sessions_opened_total"), "opened"),
            Query(rate("recurra_sessions_refused_total", by="bound"), "refused: {{bound}}"),
        ],
        unit="ops",
        width=6,
        means="Sessions opened per second, and those that could not be, by the bound that was reached.",
        act="A rush after a restart is callers that open anew; with a store they go on instead.",
    ),
    graph(
        "Ended",
        [Query(rate("recurra_sessions_ended_total", by="reason"), "{{reason}}")],
        unit="ops",
        width=6,
        means="Sessions ended per second: `closed` by the caller, `expired` unused, or `moved` to another server.",
        act="A surge of `expired`, an idle timeout after something happened to the callers: look there.",
    ),
    graph(
        "Replayed",
        [Query(rate("recurra_steps_total", where=only("outcome", "replayed")), "steps")],
        unit="reqps",
        width=6,
        means="Steps per second that were sent again and got their kept reply: nothing was applied twice.",
        act="A peak is a connection that broke. All the time: callers give up too early, see the latency.",
    ),
    graph(
        "Memory of states",
        [
            Query(total("recurra_state_bytes"), "held by sessions"),
            Query(total("recurra_state_allocated_bytes"), "set aside"),
        ],
        unit="bytes",
        width=12,
        means="Bytes of state that open sessions hold, and that the servers have set aside for states.",
        act="It follows the number of open sessions; what was set aside is used again.",
    ),
    graph(
        "Open streams",
        [Query(total("recurra_streams", by="instance", where=""), "{{instance}}")],
        unit="short",
        width=12,
        means="Open `StreamSteps` and `ModelStreamInfer` streams. One stream may carry many sessions.",
        act="A sudden fall is a lost network or a restarted gateway; sessions outlive it until they expire.",
    ),
)

DURABLE = (
    graph(
        "Checkpoints",
        [Query(rate("recurra_checkpoints_total", by="outcome", where=""), "{{outcome}}")],
        unit="ops",
        means="Checkpoints per second. `stale`: another server had taken the session over; `failed`: the store "
        "did not take it, and it is sent again.",
        act="Many `failed`: see whether the store can be reached and has memory left.",
    ),
    graph(
        "Not in the store yet",
        [Query("max by (instance) (recurra_durable_lag_seconds)", "{{instance}}")],
        unit="s",
        red_from=5,
        means="Age of each server's oldest change that a crash would take back.",
        act="It saws between 0 and --checkpoint-interval. Growing: the store is away; standing above: it is slow.",
    ),
    graph(
        "Moved and taken over",
        [
            Query(rate("recurra_sessions_taken_over_total", where=""), "taken over"),
            Query(rate("recurra_sessions_ended_total", where=only("reason", "moved")), "let go"),
        ],
        unit="ops",
        means="Sessions per second that a server took over, and that one let go because another had.",
        act="Taken over without let go: a server died. Both all the time: calls of a session go to several servers.",
    ),
)

STORE = (
    graph(
        "Requests to the store",
        [Query(rate("recurra_store_request_seconds_count", by="operation", where=""), "{{operation}}")],
        unit="ops",
        means="Requests per second. One `save` carries up to 256 sessions.",
        act="More `create` and `take_over` than sessions explain: callers retry.",
    ),
    graph(
        "Time of a request",
        quantiles("recurra_store_request_seconds", where=""),
        unit="s",
        logarithmic=True,
        means="Time until the store has answered.",
        act="Near --checkpoint-interval, checkpoints come late; SYNC steps wait for it. Give the store less to do, "
        "or be nearer.",
    ),
    graph(
        "Requests that failed",
        [Query(rate("recurra_store_request_failures_total", by="operation", where=""), "{{operation}}")],
        unit="ops",
        means="Requests per second that the store did not answer, or refused.",
        act="The log says why (`store_is_away`). Nothing is lost while the servers live.",
    ),
)

SESSIONS = Board(
    "Recurra: sessions and durability",
    "recurra-sessions",
    "Sessions opened, ended and moved, and what of them outlives a server.",
    ("model", "version"),
    (("Now", NOW), ("Sessions", LIFE), ("Durable sessions", DURABLE), ("The store", STORE)),
)
