"""What is trained, and what is claimed of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from recurra_training.cells import Cell
from recurra_training.data import TASKS
from recurra_training.data.adding import load as load_adding
from recurra_training.data.task import Task
from recurra_training.experiment import plan, run_folder
from recurra_training.settings import Changes, Settings

_EVERY: Final[tuple[Cell, ...]] = ("ffnn", "rnn", "gru", "lstm")
_THIN: Final = {"watch": 2, "watch-once": 2, "glucose": 6, "surnames": 40, "dates": 20, "stocks": 1}
"""Of a smoke run: which share of the recordings is used."""
CURES_STEPS: Final = 50


class Claim(NamedTuple):
    """That one is ahead of another in every seed; or, with `limit`, that it reaches so much."""

    better: str
    worse: str = ""
    limit: float = 0.0


@dataclass(frozen=True, slots=True)
class Lesson:
    """A task that is learnt by several kinds of network, with several seeds."""

    task: str
    idea: str
    about: str
    cells: tuple[Cell, ...] = _EVERY
    seeds: int = 3
    changes: Changes = field(default_factory=Changes)
    claims: tuple[Claim, ...] = ()


LESSONS: Final = (
    Lesson(
        "watch",
        "Many-to-many: an answer at every step",
        "Which of 7 exercises is the wearer of a watch doing? A network without memory sees one reading; one with "
        "memory has felt the movement. Each seed is judged by two people whom it has not learnt from.",
        seeds=4,
        claims=(
            Claim("rnn", "ffnn"),
            Claim("gru", "ffnn"),
            Claim("lstm", "ffnn"),
            Claim("gru", "rnn"),
            Claim("lstm", "rnn"),
        ),
    ),
    Lesson(
        "watch-once",
        "Many-to-one: one answer for a recording",
        "The same recordings, but the question is asked once, at the end, and only that answer teaches.",
        changes=Changes(epochs=60, patience=20),
        claims=(
            Claim("rnn", "ffnn"),
            Claim("gru", "ffnn"),
            Claim("lstm", "ffnn"),
            Claim("gru", "rnn"),
            Claim("lstm", "rnn"),
        ),
    ),
    Lesson(
        "glucose",
        "A forecast that must beat what is simple",
        "One person's blood sugar 30 minutes ahead. To say that it stays as it is is hard to beat; a sum of the "
        "last 12 readings, weighed right, is harder.",
        claims=(
            Claim("gru", "persistence"),
            Claim("gru", "ar12"),
            Claim("lstm", "ar12"),
            Claim("rnn", "ar12"),
            Claim("gru", "ffnn"),
        ),
    ),
    Lesson(
        "surnames",
        "One-to-many: a name, letter by letter",
        "From a first token that says what kind of name is wanted, each letter is drawn and fed back. Judged by what a "
        "letter of a name not seen costs, in bits.",
        claims=(
            Claim("rnn", "trigram"),
            Claim("gru", "trigram"),
            Claim("lstm", "trigram"),
            Claim("lstm", "rnn"),
            Claim("trigram", "ffnn"),
        ),
    ),
    Lesson(
        "dates",
        "Many-to-many, delayed: encoder and decoder",
        "A date as people write it is read to its end; the state that remains is all that the second network begins "
        "with when it writes the date as machines do.",
        cells=("rnn", "gru"),
        changes=Changes(epochs=8),
        claims=(Claim("gru", "rnn"),),
    ),
    Lesson(
        "stocks",
        "Stock prices, as in the tutorial everyone has seen",
        "The curve looks right, because it is today's price moved by a day. A share's next move is all but independent "
        "of those before, and prices leave the range that was learnt from: so persistence is the one to beat.",
        cells=("ffnn", "rnn", "lstm"),
        claims=(Claim("persistence", "ffnn"), Claim("persistence", "rnn"), Claim("persistence", "lstm")),
    ),
    Lesson(
        "adding",
        "The vanishing gradient",
        "Two numbers of 100 are marked, and their sum is wanted at the end. Who cannot remember over half the sequence "
        "cannot do better than to answer 1.",
        claims=(Claim("lstm", limit=0.005), Claim("gru", limit=0.005), Claim("lstm", "rnn"), Claim("gru", "rnn")),
    ),
    Lesson("adding-20", "", "", cells=("rnn", "lstm")),
    Lesson("adding-50", "", "", cells=("rnn", "lstm")),
)


class Cure(NamedTuple):
    """A remedy, switched on by itself: the adding problem over 50 steps with these settings."""

    name: str
    change: Callable[[Settings], Settings]


def _with(**settings: object) -> Callable[[Settings], Settings]:
    return lambda base: replace(base, **settings)  # type: ignore[arg-type]  # checked by the dataclass


CURES: Final = (
    Cure("RNN, nothing else", _with(cell="rnn", clip=0.0)),
    Cure("RNN, clipped by norm to 1", _with(cell="rnn")),
    Cure("RNN, clipped by value to 0.1", _with(cell="rnn", clip=0.1, clip_by="value")),
    Cure("RNN, back-propagation truncated to 10 steps", _with(cell="rnn", segment_steps=10)),
    Cure("RNN, orthogonal start", _with(cell="rnn", start="orthogonal")),
    Cure("RNN with ReLU", _with(cell="rnn-relu")),
    Cure("RNN with ReLU, identity start", _with(cell="rnn-relu", start="identity", learning_rate=0.001)),
    Cure("LSTM, forget bias 1", _with(cell="lstm", memory_steps=0)),
    Cure("LSTM, chrono forget bias", _with(cell="lstm")),
    Cure("GRU", _with(cell="gru", memory_steps=0)),
    Cure("GRU, chrono update bias", _with(cell="gru")),
)
CURES_EPOCHS: Final = 5
_SEEDS: Final = 3


class Job(NamedTuple):
    """One training."""

    task: str
    settings: Settings
    folder: Path
    smoke: bool


@cache
def load(name: str, *, smoke: bool = False) -> Task:
    """A task by its name; `adding-T` is the adding problem over T steps. `smoke`: with few recordings."""
    if name.startswith("adding"):
        steps = int(name.partition("-")[2] or 100)
        return load_adding(min(steps, 30), sequences=300) if smoke else load_adding(steps)
    task = TASKS[name]()
    return replace(task, recordings=task.recordings[:: _THIN[name]]) if smoke else task


def settings_of(lesson: Lesson, *, smoke: bool) -> dict[Cell, list[Settings]]:
    """The settings of every training of a lesson, by the kind of network."""
    settings = lesson.changes.applied_to(load(lesson.task, smoke=smoke).settings)
    if smoke:
        settings = replace(settings, epochs=1, hidden=8)
    return plan(load(lesson.task, smoke=smoke), settings, lesson.cells, 2 if smoke else lesson.seeds)


def cure_jobs(runs: Path, *, smoke: bool) -> dict[str, list[Job]]:
    """The trainings of every cure, by its name."""
    task = f"adding-{CURES_STEPS}"
    base = replace(load(task, smoke=smoke).settings, epochs=1 if smoke else CURES_EPOCHS, hidden=8 if smoke else 64)
    return {
        cure.name: [
            Job(task, replace(cure.change(base), seed=seed), runs / "cures" / f"{index:02}-seed{seed}", smoke)
            for seed in range(2 if smoke else _SEEDS)
        ]
        for index, cure in enumerate(CURES)
    }


def all_jobs(runs: Path, *, smoke: bool) -> Sequence[Job]:
    """Every training of all lessons."""
    jobs = [
        Job(lesson.task, one, run_folder(runs, load(lesson.task, smoke=smoke), one), smoke)
        for lesson in LESSONS
        for each in settings_of(lesson, smoke=smoke).values()
        for one in each
    ]
    return jobs + [job for each in cure_jobs(runs, smoke=smoke).values() for job in each]
