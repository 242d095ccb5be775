"""One's own data: from a table to a published model, and mistakes named by row and column."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars
import pytest
from recurra_client.cli import run
from recurra_training.data.table import load_table, summary
from recurra_training.errors import TaskError
from recurra_training.source import TableSource

HEADER = ["id", "ax", "ay", "machine", "label", "load"]


def rows(sequences: int = 12, steps: int = 8) -> list[list[object]]:
    rng = np.random.default_rng(0)
    made: list[list[object]] = []
    for sequence in range(sequences):
        word = ("idle", "busy")[sequence % 2]
        for _ in range(steps):
            ax, ay = rng.normal(size=2) + sequence % 2
            made.append([f"s{sequence}", round(ax, 4), round(ay, 4), f"m{sequence % 4}", word, round(2 * ax, 4)])
    return made


def write_csv(path: Path, lines: list[list[object]], header: list[str] = HEADER) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *lines])
    return path


def source(path: Path, **changes: object) -> TableSource:
    fields: dict[str, object] = {"data": path, "sequence": "id", "inputs": ("ax", "ay"), "target": "label"} | changes
    return TableSource(**fields)  # type: ignore[arg-type]  # what a test changes is of the right type


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "plant.csv", rows())


def test_a_table_is_understood(table: Path) -> None:
    task = load_table(source(table, group="machine"))
    assert (task.name, task.output.labels, task.input.labels) == ("plant", ("busy", "idle"), ("ax", "ay"))
    assert len(task.recordings) == 12
    assert {recording.group for recording in task.recordings} == {"m0", "m1", "m2", "m3"}
    first = task.recordings[0]
    expected = np.array([row[1:3] for row in rows()[:8]], np.float32)
    assert np.array_equal(first.x, expected)
    assert [task.output.labels[index] for index in first.target] == ["idle"] * 8
    shown = dict(summary(task))
    assert shown["target"] == "2 classes: busy, idle"
    assert shown["sequences"] == "12 in 4 groups, 8 to 8 steps long"


def test_numbers_are_values_unless_they_are_few_and_whole(tmp_path: Path, table: Path) -> None:
    assert load_table(source(table, target="load")).output.kind == "value"
    levels = write_csv(tmp_path / "levels.csv", [[*row[:5], number % 3] for number, row in enumerate(rows())])
    assert load_table(source(levels, target="load")).output.labels == ("0", "1", "2")
    assert load_table(source(levels, target="load", target_kind="value")).output.kind == "value"


def test_csv_parquet_and_npy_are_the_same_data(tmp_path: Path, table: Path) -> None:
    frame = polars.read_csv(table)
    frame.write_parquet(tmp_path / "plant.parquet")
    np.save(
        tmp_path / "plant.npy",
        np.array(
            [tuple(row) for row in rows()],
            [(name, "U4" if name in ("id", "machine", "label") else "f8") for name in HEADER],
        ),
    )
    one, *others = (load_table(source(tmp_path / f"plant.{kind}")) for kind in ("csv", "parquet", "npy"))
    for other in others:
        assert other.output == one.output
        for ours, theirs in zip(one.recordings, other.recordings, strict=True):
            assert (ours.name, ours.group) == (theirs.name, theirs.group)
            np.testing.assert_array_equal(ours.x, theirs.x)
            np.testing.assert_array_equal(ours.target, theirs.target)


def test_columns_of_a_plain_array_go_by_number(tmp_path: Path) -> None:
    array = np.column_stack([np.repeat(np.arange(5), 4), np.random.default_rng(0).normal(size=(20, 2))])
    np.save(tmp_path / "plain.npy", array)
    task = load_table(source(tmp_path / "plain.npy", sequence="0", inputs=("1",), target="2"))
    np.testing.assert_allclose(task.recordings[1].x[:, 0], array[4:8, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("row", "column", "cell", "message"),
    [
        (2, 1, "fast", "plant.csv row 4: column ax holds 'fast', expected a number"),
        (0, 2, "", "plant.csv row 2: column ay is empty; fill it in or leave the row out"),
        (5, 2, "inf", "plant.csv row 7: column ay holds inf, expected a finite number"),
        (3, 3, "m9", "sequence 's0' belongs to several groups"),
    ],
)
def test_a_mistake_is_named_by_row_and_column(tmp_path: Path, row: int, column: int, cell: str, message: str) -> None:
    lines = rows()
    lines[row][column] = cell
    with pytest.raises(TaskError, match=message.replace(".", r"\.")):
        load_table(source(write_csv(tmp_path / "plant.csv", lines), group="machine"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ("ax", "az")}, "has no column 'az'; it has id, ax, ay, machine, label, load"),
        ({"target": ""}, "own data need --data, --sequence, --inputs and --target"),
        ({"data": Path("nowhere.csv")}, "nowhere.csv is not a file"),
        ({"data": Path(__file__)}, "must be a .csv, .parquet or .npy file"),
    ],
)
def test_what_is_not_there_is_said(table: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_table(source(table, **changes))


def test_own_data_are_trained_on_published_and_repeated(
    table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(table.parent)
    columns = ("--sequence", "id", "--inputs", "ax,ay", "--target", "label")
    quick = ("--cells", "gru", "--hidden", "8", "--epochs", "2")
    assert run(["train", "--data", "plant.csv", *columns, *quick]) == 0
    shown = capsys.readouterr().out
    for part in ("2 classes: busy, idle", "GRU", "models/plant/1/model.onnx", "runs/plant/report.html"):
        assert part in shown
    facts = Path("runs/plant/gru-1x8-seed0/run.json")
    first = json.loads(facts.read_text(encoding="utf-8"))
    assert run(["train", "--config", "runs/plant/gru-1x8-seed0/config.yaml", "--runs", "again", "--no-publish"]) == 0
    again = json.loads(Path("again/plant/gru-1x8-seed0/run.json").read_text(encoding="utf-8"))
    assert again["metrics"] == first["metrics"]


def test_the_example_in_the_docs_runs(tmp_path: Path) -> None:
    document = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    example = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)[0]
    assert "MinGRU" in example
    write_csv(
        tmp_path / "runs.csv",
        [[*row[:3], row[5], *row[3:5]] for row in rows()],
        ["id", "ax", "ay", "az", "machine", "label"],
    )
    code = example.replace("task.settings", "replace(task.settings, epochs=3)")
    code = f"from dataclasses import replace\n{code}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "models/runs/1/model.onnx" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to learn: a task, or --data with own data, or --config"),
        (["watch", "--data", "plant.csv"], "say what to learn"),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--config", "plant.csv"], "plant.csv is not the config.yaml of a run"),
        (["--config", "bad.yaml"], "bad.yaml: hidden: Input should be a valid integer"),
        (["--config", "other.yaml"], "there is no task 'elsewhere'"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_in_one_line(
    table: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(table.parent)
    Path("bad.yaml").write_text("task: watch\nhidden: many\n", encoding="utf-8")
    Path("other.yaml").write_text("task: elsewhere\n", encoding="utf-8")
    assert run(["train", *arguments]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
