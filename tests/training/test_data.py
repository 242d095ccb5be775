"""Recordings, splits, segments and the files written of them."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from recurra_training.data import TASKS, Recording, Split, Task, split_in_time
from recurra_training.data.held_out import write_recordings
from recurra_training.data.segments import Segments, pad
from recurra_training.errors import TaskError

from tests.training.toy import toy_task


@pytest.fixture(scope="module")
def watch() -> Task:
    return TASKS["watch"]()


def groups(recordings: tuple[Recording, ...]) -> set[str]:
    return {recording.group for recording in recordings}


def test_no_person_stands_in_two_parts_of_the_split(watch: Task) -> None:
    split = watch.split()
    parts = [groups(part) for part in (split.train, split.validation, split.test)]
    assert [len(part) for part in parts] == [6, 2, 2]
    assert len(set.union(*parts)) == 10
    assert len(split.train) + len(split.validation) + len(split.test) == len(watch.recordings) == 140


def test_the_split_is_the_same_each_time(watch: Task) -> None:
    assert groups(watch.split().test) == groups(TASKS["watch"]().split().test)


def test_five_folds_judge_by_each_person_once(watch: Task) -> None:
    tested = [groups(watch.split(fold).test) for fold in range(watch.folds)]
    assert [len(people) for people in tested] == [2] * 5
    assert len(set.union(*tested)) == 10
    for fold in range(watch.folds):
        split = watch.split(fold)
        assert not groups(split.test) & (groups(split.train) | groups(split.validation))


def test_what_is_judged_by_comes_after_what_is_learnt_from() -> None:
    task = toy_task(groups=10)
    split = split_in_time(task.recordings)
    order = {recording.group: index for index, recording in enumerate(task.recordings)}
    parts = (split.train, split.validation, split.test)
    train, validation, test = ([order[one.group] for one in part] for part in parts)
    assert max(train) < min(validation) <= max(validation) < min(test)


def test_too_few_groups_to_split_are_refused() -> None:
    with pytest.raises(TaskError, match="at least 3 groups"):
        toy_task(groups=2).split()


def test_the_exercises_are_named_raw_and_at_10_hz(watch: Task) -> None:
    assert watch.input.labels[0] == "accelerometer_x"
    assert len(watch.output.labels) == 7
    steps = sum(len(recording.x) for recording in watch.recordings)
    assert steps == pytest.approx(244_102 / 5, abs=140), "5 readings of 50 Hz make a step"
    # Raw: the accelerometer still feels gravity.
    norms = [np.linalg.norm(recording.x[:, :3].mean(0)) for recording in watch.recordings]
    assert 0.5 < np.mean(norms) < 1.1
    assert len({recording.name for recording in watch.recordings}) == 140
    for recording in watch.recordings:
        named = watch.output.labels[recording.target[0]].replace(" ", "_").replace("-", "_")
        assert recording.name.endswith(named)


def test_segments_put_together_are_the_recordings() -> None:
    recordings = toy_task().recordings
    rows: dict[int, list[torch.Tensor]] = {}
    batch = -1
    for segment in Segments(recordings, batch_size=5, steps=4):
        batch += segment.first
        for row in range(len(segment.x)):
            rows.setdefault(5 * batch + row, []).append(segment.x[row][segment.mask[row]])
    assert len(rows) == len(recordings)
    for index, recording in enumerate(recordings):
        assert torch.equal(torch.cat(rows[index]), torch.from_numpy(recording.x)), "a row must stay in its place"


def test_segments_know_how_many_they_are() -> None:
    segments = Segments(toy_task().recordings, batch_size=5, steps=4, rng=np.random.default_rng(0))
    assert len(segments) == len(list(segments))


def test_segments_are_shuffled_by_their_generator_alone() -> None:
    def order(seed: int) -> list[float]:
        segments = Segments(toy_task().recordings, batch_size=5, steps=4, rng=np.random.default_rng(seed))
        return [float(segment.x[0, 0, 0]) for segment in segments]

    assert order(1) == order(1) != order(2)


def test_padding_is_masked() -> None:
    short, long = sorted(toy_task().recordings, key=lambda recording: len(recording.x))[
        :: len(toy_task().recordings) - 1
    ]
    segment = pad([short, long])
    assert segment.mask.sum(1).tolist() == [len(short.x), len(long.x)]
    assert segment.x[~segment.mask].abs().sum() == 0


def test_written_recordings_read_back_exactly(watch: Task, tmp_path: Path) -> None:
    (tmp_path / "of_another_split.csv").touch()
    recording = watch.recordings[0]
    write_recordings(watch, [recording], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{recording.name}.csv"]
    with (tmp_path / f"{recording.name}.csv").open(encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["time_s", *watch.input.labels, "label"]
    assert np.array_equal(np.array([line[1:7] for line in lines], np.float32), recording.x)
    assert [float(line[0]) for line in lines[:3]] == [0, 0.1, 0.2]
    assert {line[7] for line in lines} == {watch.output.labels[recording.target[0]]}


def test_a_split_keeps_recordings_whole() -> None:
    task = toy_task()
    split = task.split()
    assert isinstance(split, Split)
    assert {*split.train, *split.validation, *split.test} == {*task.recordings}
