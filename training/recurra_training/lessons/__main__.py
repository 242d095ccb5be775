"""`make lessons`: trains everything, writes the page, and puts the table into docs/learning.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter, validators
from rich.console import Console
from rich.table import Table

from recurra_training.lessons.page import write_page
from recurra_training.lessons.plan import all_jobs
from recurra_training.lessons.results import cures, minutes, results
from recurra_training.lessons.table import markdown, write_into
from recurra_training.lessons.trainings import train_all
from recurra_training.studies import exploding

app = App(name="lessons", help_format="plaintext")


@app.default
def lessons(
    *,
    runs: Path = Path("runs/lessons"),
    document: Path | None = None,
    processes: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 2,
    smoke: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train all lessons and show what came of them. What was trained before is kept.

    Parameters
    ----------
    runs
        Folder of the runs, and of the page.
    document
        Markdown file that the table is written into.
    processes
        Trainings at a time.
    smoke
        Train hardly at all, to see that everything runs.
    """
    console = Console(highlight=False, soft_wrap=True)
    train_all(all_jobs(runs, smoke=smoke), console, processes=processes)
    torch.set_num_threads(1)
    with console.status("Drawing ..."):
        found, cured = results(runs, smoke=smoke), cures(runs, smoke=smoke)
        shown = exploding.courses(10 if smoke else 100)
        page = write_page(runs, found, cured, shown)
    text = markdown(found, cured, shown)
    (runs / "table.md").write_text(text, encoding="utf-8")
    for result in found:
        for verdict in result.verdicts:
            console.print(f"{result.experiment.task.name:12} {verdict.text:60} {verdict}")
    if document is not None:
        write_into(document, text)
    _print_minutes(console, minutes(runs, found, smoke=smoke), processes)
    console.print(f"\nPage   {page}\nTable  {document or runs / 'table.md'}")


def _print_minutes(console: Console, spent: Sequence[tuple[str, int, float]], processes: int) -> None:
    """Where the time goes."""
    table = Table(box=None, pad_edge=False)
    table.add_column("lesson")
    for title in ("trainings", "minutes of one processor"):
        table.add_column(title, justify="right")
    for name, count, each in spent:
        table.add_row(name, str(count), f"{each:.1f}")
    total = sum(each for _, _, each in spent)
    table.add_row("all", str(sum(count for _, count, _ in spent)), f"{total:.1f}", style="bold")
    console.print()
    console.print(table)
    console.print(f"{processes} at a time: about {total / processes:.0f} minutes in all")


if __name__ == "__main__":
    app()
