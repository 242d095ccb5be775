"""The picture of who is ahead, and by how much."""

from collections.abc import Sequence
from pathlib import Path

from recurra_training.data.task import Measure
from recurra_training.experiment import Figure
from recurra_training.report.curves import title_of
from recurra_training.report.style import color, picture


def draw_comparison(path: Path, measure: Measure, figures: Sequence[Figure]) -> None:
    """A bar for each baseline and network: the mean over the seeds, also as a number, and a dot for each seed."""
    with picture(path, size=(8.5, 0.9 + 0.42 * len(figures))) as (_, (axis,)):
        for row, figure in enumerate(figures):
            axis.barh(row, figure.mean, height=0.62, color=color(figure.name))
            if figure.differs:
                axis.plot(figure.values, [row] * len(figure.values), "o", color="#222222", markersize=3.2)
            # In a column of their own: beside a dot it would be taken for that dot's.
            place = axis.get_yaxis_transform()
            axis.text(1.02, row, figure.text(measure), transform=place, va="center")
        axis.set_yticks(range(len(figures)), [figure.label for figure in figures])
        axis.invert_yaxis()
        axis.grid(axis="y", visible=False)
        axis.margins(x=0.04)
        better = "more is better" if measure.best == "max" else "less is better"
        axis.set(title="On the test recordings", xlabel=f"{title_of(measure)}: {better}")
        if measure.unit == "%":
            axis.set_xlim(0, 1)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
