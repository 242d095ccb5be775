"""The PromQL that the dashboards are made of."""

from deploy.grafana.panels import Query

# What the viewer chose at the top, and the range over which a rate is taken.
CHOSEN = 'model=~"$model", version=~"$version"'
INSTANCE = 'instance=~"$instance"'
RANGE = "$__rate_interval"
VERSION = "{{model}}/{{version}}"
# Restricts a process metric to Recurra's servers: every target of Prometheus has those.
OURS = "* on (job, instance) group_left () recurra_build_info"
# Errors that no caller could have avoided.
SERVERS_FAULT = 'fault="server"'


def only(label: str, value: str) -> str:
    """What the viewer chose, and of that only what has this label."""
    return f'{CHOSEN}, {label}="{value}"'


def rate(counter: str, by: str = "", where: str = CHOSEN) -> str:
    """A counter's increase per second, summed, or summed by some labels."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({_selected(counter, where)}[{RANGE}]))"


def total(gauge: str, by: str = "", where: str = CHOSEN) -> str:
    """A gauge, summed likewise."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} ({_selected(gauge, where)})"


def quantiles(histogram: str, where: str = CHOSEN, *, by: str = "", legend: str = "") -> list[Query]:
    """The median, and what 95 and 99 of 100 stay below."""
    buckets = rate(f"{histogram}_bucket", by=f"le, {by}" if by else "le", where=where)
    return [Query(f"histogram_quantile({q}, {buckets})", f"{legend}p{q * 100:g}") for q in (0.5, 0.95, 0.99)]


def mean(histogram: str, where: str = CHOSEN) -> str:
    """The mean of what was observed."""
    return f"{rate(f'{histogram}_sum', where=where)} / {rate(f'{histogram}_count', where=where)}"


def _selected(metric: str, where: str) -> str:
    return f"{metric}{{{where}}}" if where else metric
