"""The few kinds of panels that the dashboards are made of."""

from collections.abc import Iterable, Sequence
from string import ascii_uppercase
from typing import NamedTuple

from grafana_foundation_sdk.builders import heatmap as heatmaps
from grafana_foundation_sdk.builders import stat, table, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    ScaleDistributionConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import Dashboard as DashboardBuilder
from grafana_foundation_sdk.builders.dashboard import (
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    DataSourceRef,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    ScaleDistribution,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

# The viewer chooses the data source, so that a dashboard can be imported anywhere.
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
# What a viewer can choose: its label, and where Grafana finds what there is.
CHOICES = {
    "model": ("Model", "label_values(recurra_model_info, model)"),
    "version": ("Version", 'label_values(recurra_model_info{model=~"$model"}, version)'),
    "instance": ("Server", "label_values(recurra_build_info, instance)"),
}

Panel = timeseries.Panel | stat.Panel | table.Panel | heatmaps.Panel


class Query(NamedTuple):
    """A PromQL expression, and how its lines are named: text with `{{label}}` in it."""

    expr: str
    legend: str


class Board(NamedTuple):
    """A dashboard, from top to bottom.

    Attributes:
        title, uid, description: What it is called, in Grafana's addresses too, and what it shows.
        choices: What the viewer chooses at the top: names of `CHOICES`.
        rows: Their titles, and the panels in them.
    """

    title: str
    uid: str
    description: str
    choices: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Panel]]]

    def build(self) -> Dashboard:
        """As Grafana's builder."""
        dashboard = (
            DashboardBuilder(self.title)
            .uid(self.uid)
            .description(self.description)
            .tags(["recurra"])
            .readonly()
            .refresh("5s")
            .time("now-15m", "now")
            .tooltip(DashboardCursorSync.CROSSHAIR)
            .link(
                DashboardLink("Recurra")
                .type(DashboardLinkType.DASHBOARDS)
                .tags(["recurra"])
                .include_vars(True)
                .keep_time(True)
            )
            .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        )
        for name in self.choices:
            dashboard.with_variable(_choice(name, *CHOICES[name]))
        for title, panels in self.rows:
            # Grafana shows what is inside an open row only if it stands beside it.
            dashboard.with_row(Row(title))
            for panel in panels:
                dashboard.with_panel(panel)
        built = dashboard.build()
        # Links to a panel go by its number.
        for place, drawn in enumerate(built.panels or (), start=1):
            drawn.id_val = place
        return built


def graph(
    title: str,
    queries: Iterable[Query],
    *,
    unit: str,
    means: str,
    act: str,
    width: int = 8,
    logarithmic: bool = False,
    red_from: float | None = None,
    exemplars: bool = False,
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
        red_from: Shade what lies above this value red.
        exemplars: Mark single steps that have a trace.
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
    if red_from is not None:
        panel.thresholds(_red_from(red_from)).thresholds_style(
            GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.AREA)
        )
    for ref_id, query in zip(ascii_uppercase, queries, strict=False):
        target = _target(query, ref_id)
        panel.with_target(target.exemplar(True) if exemplars else target)
    return panel


def buckets(title: str, expr: str, *, unit: str, means: str, act: str, width: int = 12) -> heatmaps.Panel:
    """How a histogram's values are spread, over time: the more, the brighter.

    Args:
        title: What is drawn.
        expr: Rates of the buckets, by `le`.
        unit: A Grafana unit of the values.
        means: What a field means.
        act: What to do when it looks bad.
        width: In 24ths of the dashboard.
    """
    return (
        heatmaps.Panel()
        .title(title)
        .description(_description(means, act))
        .datasource(SOURCE)
        .span(width)
        .height(8)
        .calculate(False)
        .y_axis(heatmaps.YAxisConfig().unit(unit))
        .color(heatmaps.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .with_target(_target(Query(expr, "{{le}}")).format(PromQueryFormat.HEATMAP))
    )


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
        .thresholds(_red_from(red_from))
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


def _red_from(value: float | None) -> ThresholdsConfig:
    steps = [Threshold(value=None, color="green")]
    if value is not None:
        steps.append(Threshold(value=value, color="red"))
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


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
