"""The tasks' data, and what must be beaten on them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from recurra_training import metrics
from recurra_training.build import build, configure
from recurra_training.data import TASKS, Recording, Split, Task
from recurra_training.data.dates import SOURCE, TARGET, spell
from recurra_training.data.forecasts import autoregression, persistence
from recurra_training.data.segments import pad
from recurra_training.data.surnames import END, TOKENS, ngram_bits
from recurra_training.errors import RunError
from recurra_training.seq2seq import EncoderDecoder


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {name: load() for name, load in TASKS.items()}


@pytest.mark.parametrize("name", list(TASKS))
def test_a_task_fits_its_own_description(name: str, tasks: dict[str, Task]) -> None:
    task = tasks[name]
    assert task.name == name
    assert (task.tokens > 0) == (task.input.dtype == "int64")
    split = task.split()
    assert min(len(split.train), len(split.validation), len(split.test)) > 0
    assert not {one.group for one in split.train} & {one.group for one in split.test}
    for recording in (*split.train[:5], *split.test[:5]):
        assert recording.x.shape == (len(recording.x), *task.input.dims)
        assert recording.target.shape == (len(recording.x), *(() if task.is_classes else task.output.dims))
        assert recording.asked is None or recording.asked.shape == (len(recording.x),)
        assert np.isfinite(recording.x).all()
        if task.is_classes:
            assert recording.target.max() < len(task.output.labels) == task.output.dims[0]
    assert task.measure.name in metrics.evaluate(build(configure(task, task.settings)), split.test[:8], task)


@pytest.mark.parametrize(
    ("name", "baseline", "value"),
    [
        ("watch", "majority", 0.167),
        ("watch-once", "majority", 0.143),
        ("adding", "mean", 1 / 6),
        ("glucose", "persistence", 27.5),
        ("glucose", "ar12", 23.2),
        ("surnames", "bigram", 3.70),
        ("surnames", "trigram", 3.37),
        ("stocks", "persistence", 10.6),
    ],
)
def test_the_baselines_are_as_strong_as_they_are_known_to_be(
    name: str, baseline: str, value: float, tasks: dict[str, Task]
) -> None:
    found = metrics.baselines(tasks[name], tasks[name].split())
    assert found[baseline] == pytest.approx(value, rel=0.03)


def test_a_forecast_looks_as_far_ahead_as_it_says(tasks: dict[str, Task]) -> None:
    for recording in tasks["glucose"].recordings[:20]:
        if len(recording.x) > 20:
            np.testing.assert_array_equal(recording.target[:-6, 0], recording.x[6:, 0])
            np.testing.assert_array_equal(recording.target[:-12, 1], recording.x[12:, 0])
            assert recording.asked is not None
            assert recording.asked.tolist() == [False] * 11 + [True] * (len(recording.x) - 11)


def test_a_straight_line_is_foreseen_by_the_linear_forecast_only() -> None:
    def line(slope: float) -> Recording:
        x = (slope * np.arange(40, dtype=np.float32))[:, None]
        return Recording("", "", x, x + 6 * slope, np.arange(40) >= 11)

    assert persistence([line(2.0)]) == pytest.approx(12)
    assert autoregression([line(1.0), line(3.0)], [line(2.0)]) == pytest.approx(0, abs=1e-4)


def test_counting_letters_costs_nothing_where_the_next_is_certain() -> None:
    index = {token: place for place, token in enumerate(TOKENS)}

    def name(letters: str) -> Recording:
        tokens = np.array([index["<surname>"], *(index[letter] for letter in letters), index[END]])
        return Recording(letters, letters, tokens[:-1], tokens[1:])

    certain = Split(tuple(name("abc") for _ in range(1000)), (), (name("abc"),))
    assert ngram_bits(certain, 2) < 0.01
    mixed = Split(tuple(name(letters) for letters in ("aba", "cbc") * 1000), (), (name("aba"),))
    assert ngram_bits(mixed, 3) < ngram_bits(mixed, 2), "after b, what was before it tells"


def test_a_date_is_read_and_then_written(tasks: dict[str, Task]) -> None:
    for recording in tasks["dates"].recordings[:50]:
        assert recording.asked is not None
        read = "".join(SOURCE[token] for token in recording.x[~recording.asked])
        assert recording.x[~recording.asked].tolist() == spell(read)
        written = [TARGET[token] for token in recording.target[recording.asked]]
        year, month, day = "".join(written[:-1]).split("-")
        assert year in read or month in read
        assert len(month) == len(day) == 2
        assert written[-1] == "<end>"
        fed = [TARGET[token - len(SOURCE)] for token in recording.x[recording.asked]]
        assert fed == ["<begin>", *written[:-1]]


@torch.no_grad()
def test_what_a_batch_is_filled_up_with_does_not_change_an_encoder_decoder(tasks: dict[str, Task]) -> None:
    task = tasks["dates"]
    torch.manual_seed(0)
    network = build(configure(task, replace(task.settings, hidden=16))).eval()
    assert isinstance(network, EncoderDecoder)
    recordings = sorted(task.recordings[:30], key=lambda one: len(one.x))
    recordings = [recordings[0], recordings[-1], recordings[10]]
    together, segment = network(pad(recordings).x)[0], pad(recordings)
    for row, recording in enumerate(recordings):
        alone = network(torch.from_numpy(recording.x)[None])[0]
        torch.testing.assert_close(together[row][segment.mask[row]], alone[0][torch.from_numpy(recording.asked)])


def test_an_encoder_decoder_is_of_what_its_state_can_be_told_of(tasks: dict[str, Task]) -> None:
    for settings in (replace(tasks["dates"].settings, cell="lstm"), replace(tasks["dates"].settings, layers=2)):
        with pytest.raises(RunError, match="of cell rnn, rnn-relu or gru and of 1 layer"):
            build(configure(tasks["dates"], settings))
