"""The few kinds of panels that the dashboards are made of."""

from collections.abc import Iterable
from string import ascii_uppercase
from typing import NamedTuple

from grafana_foundation_sdk.builders import stat, table, timeseries
from grafana_foundation_sdk.builders.common import (
    ReduceDataOptions,
    ScaleDistributionConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    DataSourceRef,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# The viewer chooses the data source, so that a dashboard can be imported anywhere.
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


class Query(NamedTuple):
    """A PromQL expression, and how its lines are named: text with `{{label}}` in it."""

    expr: str
    legend: str


def empty_dashboard(title: str, uid: str, description: str) -> Dashboard:
    """An empty dashboard with a choice of data source, model and version."""
    return (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["recurra"])
        .readonly()
        .refresh("5s")
        .time("now-15m", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_choice("model", "Model", "label_values(recurra_model_info, model)"))
        .with_variable(_choice("version", "Version", 'label_values(recurra_model_info{model=~"$model"}, version)'))
    )


def add_row(dashboard: Dashboard, title: str, panels: Iterable[timeseries.Panel | stat.Panel | table.Panel]) -> None:
    """Add a titled row of panels."""
    # Grafana shows what is inside an open row only if it stands beside it.
    dashboard.with_row(Row(title))
    for panel in panels:
        dashboard.with_panel(panel)


def graph(
    title: str, queries: Iterable[Query], *, unit: str, means: str, act: str, width: int = 8, logarithmic: bool = False
) -> timeseries.Panel:
    """Lines over time.

    Args:
        title: What is drawn.
        queries: The lines.
        unit: A Grafana unit, such as "s" or "bytes".
        means: What the lines mean.
        act: What to do when they look bad.
        width: In 24ths of the dashboard.
        logarithmic: Draw from the smallest to the largest value on a logarithmic axis, for latencies.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(_description(means, act))
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(8)
        .line_width(1)
        .fill_opacity(8)
        .legend(
            VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if logarithmic:
        panel.scale_distribution(ScaleDistributionConfig().type(ScaleDistribution.LOG).log(10))
    else:
        panel.min(0)
    for ref_id, query in zip(ascii_uppercase, queries, strict=False):
        panel.with_target(_target(query, ref_id))
    return panel


def number(title: str, query: Query, *, unit: str, means: str, act: str, red_from: float | None = None) -> stat.Panel:
    """The newest value, large, with its course behind it.

    Args:
        title: What it is.
        query: One line.
        unit: A Grafana unit.
        means: What the number means.
        act: What to do when it looks bad.
        red_from: Draw it red from this value on.
    """
    steps = [Threshold(value=None, color="green")]
    if red_from is not None:
        steps.append(Threshold(value=red_from, color="red"))
    return (
        stat.Panel()
        .title(title)
        .description(_description(means, act))
        .datasource(SOURCE)
        .unit(unit)
        .span(4)
        .height(4)
        .no_value("none")
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(_target(query))
    )


def facts(title: str, expr: str, *, means: str, act: str, width: int = 12) -> table.Panel:
    """The labels of a metric that is always 1, as a table.

    Args:
        title: What it lists.
        expr: The metric.
        means: What a row means.
        act: What to do when it looks bad.
        width: In 24ths of the dashboard.
    """
    hidden = ("Time", "Value", "__name__", "job")
    return (
        table.Panel()
        .title(title)
        .description(_description(means, act))
        .datasource(SOURCE)
        .span(width)
        .height(6)
        .with_target(Dataquery().expr(expr).format(PromQueryFormat.TABLE).instant().ref_id("A"))
        .with_transformation(
            DataTransformerConfig(id_val="organize", options={"excludeByName": dict.fromkeys(hidden, True)})
        )
    )


def _choice(name: str, label: str, query: str) -> QueryVariable:
    return (
        QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(SOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(text="All", value="$__all", selected=True))
    )


def _target(query: Query, ref_id: str = "A") -> Dataquery:
    return Dataquery().ref_id(ref_id).expr(query.expr).legend_format(query.legend).range()


def _description(means: str, act: str) -> str:
    return f"{means}\n\n**When it looks bad:** {act}"
