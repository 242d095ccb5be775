"""The adding problem's generator."""

import numpy as np
import pytest
from recurra_training.data.adding import CONSTANT_ERROR, adding_problem


@pytest.mark.parametrize("steps", [2, 7, 100])
def test_the_two_marked_numbers_add_up(steps: int) -> None:
    x, y = adding_problem(500, steps, np.random.default_rng(0))
    assert x.shape == (500, steps, 2)
    assert x.dtype == y.dtype == np.float32
    numbers, markers = x[..., 0], x[..., 1]
    np.testing.assert_allclose((numbers * markers).sum(1), y, rtol=1e-6)
    assert (markers[:, : steps // 2].sum(1) == 1).all(), "one in the first half"
    assert (markers[:, steps // 2 :].sum(1) == 1).all(), "one in the second"
    assert len(set(markers.argmax(1))) == steps // 2, "anywhere in its half"


def test_a_constant_answer_errs_by_a_sixth() -> None:
    _, y = adding_problem(100_000, 10, np.random.default_rng(1))
    assert np.mean((y - 1) ** 2) == pytest.approx(CONSTANT_ERROR, rel=0.02)


def test_a_seed_gives_the_same_sequences_again() -> None:
    (x, y), (again, sums) = (adding_problem(3, 20, np.random.default_rng(5)) for _ in range(2))
    assert (x == again).all()
    assert (y == sums).all()


def test_one_step_has_no_two_numbers() -> None:
    with pytest.raises(ValueError, match="at least 2 steps"):
        adding_problem(1, 1, np.random.default_rng(0))
