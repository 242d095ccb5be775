"""The task dates: a date as people write it is read, then written as machines do (encoder-decoder).

"March 5, 1993" becomes "1993-03-05". Nothing can be written before the end of what is read is known: the encoder reads
all of it, and the state that it ends with is where the decoder begins. The dates are drawn.
"""

import datetime
from typing import Final

import numpy as np

from recurra_training.data.recording import Recording
from recurra_training.data.splits import split_in_time
from recurra_training.data.task import Measure, Task
from recurra_training.settings import Settings
from recurra_training.signature import Feedback, TensorSpec

SOURCE: Final = ("", *" ,./", *"0123456789", *"abcdefghijklmnopqrstuvwxyz")
"""What the encoder reads, by index; the first is a blank that fills batches up."""
TARGET: Final = (*"0123456789-", "<end>", "<begin>")
"""What the decoder reads and answers."""
_FORMATS: Final = ("%d %B %Y", "%B %d, %Y", "%d %b %Y", "%b %d, %Y", "%d/%m/%Y", "%d.%m.%Y", "%A %d %B %Y")
_FIRST, _LAST = datetime.date(1900, 1, 1).toordinal(), datetime.date(2100, 1, 1).toordinal()


def load(dates: int = 16_000) -> Task:
    """Draw dates: as many to learn from, a fifth more to choose by, and a fifth to judge by."""
    recordings = []
    for part, count, seed in (("train", dates, 0), ("validation", dates // 5, 1), ("test", dates // 5, 2)):
        rng = np.random.default_rng(seed)
        days = rng.integers(_FIRST, _LAST, count)
        formats = rng.integers(len(_FORMATS), size=count)
        recordings += [_recording(part, index, *pair) for index, pair in enumerate(zip(days, formats, strict=True))]
    return Task(
        name="dates",
        description="A date as people write it, read letter by letter, then written as machines do.",
        input=TensorSpec("x", "int64", (), labels=(*(f"read {token}" for token in SOURCE), *TARGET)),
        output=TensorSpec("y", "float32", (len(TARGET),), labels=TARGET, kind="logit"),
        step_seconds=None,
        recordings=tuple(recordings),
        deal=split_in_time,
        measure=Measure("whole_accuracy", "max", "dates that are right throughout", "%"),
        feedback=Feedback("y", "x", sampled=True),
        source_tokens=len(SOURCE),
        settings=Settings(
            cell="gru",
            hidden=128,
            epochs=30,
            patience=10,
            batch_size=128,
            segment_steps=64,
            learning_rate=0.004,
            dropout=0.0,
            input_noise=0.0,
        ),
        cells=("rnn", "gru"),
        goal=0.995,
    )


def spell(text: str) -> list[int]:
    """What is read, as the encoder's tokens.

    Raises:
        ValueError: There is a letter that it does not know.
    """
    return [SOURCE.index(letter) for letter in text.lower()]


def _recording(part: str, index: int, day: int, form: int) -> Recording:
    date = datetime.date.fromordinal(int(day))
    read = spell(date.strftime(_FORMATS[form]))
    written = [TARGET.index(token) for token in (*date.isoformat(), "<end>")]
    fed = [len(SOURCE) + token for token in (TARGET.index("<begin>"), *written[:-1])]
    asked = np.arange(len(read) + len(fed)) >= len(read)
    target = np.array([0] * len(read) + written)
    return Recording(f"{part}_{index}", part, np.array(read + fed), target, asked)
