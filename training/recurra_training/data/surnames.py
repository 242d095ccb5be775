"""The task surnames: the next letter of a name, so that names can be made, letter by letter (one-to-many).

88,799 surnames and 5,494 first names of the US census of 1990, from the package names (MIT). The first token says what
kind of name is wanted.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from recurra_training.data.packages import package_file
from recurra_training.data.recording import Recording, Split
from recurra_training.data.splits import split_by_group
from recurra_training.data.task import Measure, Task
from recurra_training.settings import Settings
from recurra_training.signature import Feedback, TensorSpec

END: Final = "."
TOKENS: Final = (END, *"abcdefghijklmnopqrstuvwxyz", "<surname>", "<female>", "<male>")
"""What a step reads, and what it answers: a letter, the end, or what kind of name is to begin."""
_FILES: Final = {"<surname>": "dist.all.last", "<female>": "dist.female.first", "<male>": "dist.male.first"}
_INDEX: Final = {token: index for index, token in enumerate(TOKENS)}


def load() -> Task:
    """Read the names.

    Raises:
        TaskError: The package names is not installed.
    """
    return Task(
        name="surnames",
        description="The next letter of a surname or first name; the first token says which.",
        input=TensorSpec("x", "int64", (), labels=TOKENS),
        output=TensorSpec("y", "float32", (len(TOKENS),), labels=TOKENS, kind="logit"),
        step_seconds=None,
        recordings=tuple(
            _recording(kind, line.split()[0].lower())
            for kind, file in _FILES.items()
            for line in package_file("names", file).read_text(encoding="ascii").splitlines()
        ),
        measure=Measure("bits", "min", "bits a letter"),
        deal=_deal,
        baselines=_baselines,
        feedback=Feedback("y", "x", sampled=True),
        settings=Settings(
            hidden=128,
            epochs=10,
            patience=3,
            batch_size=256,
            segment_steps=32,
            learning_rate=0.01,
            schedule="cosine",
            dropout=0.1,
            input_noise=0.0,
        ),
    )


def _recording(kind: str, name: str) -> Recording:
    tokens = np.array([_INDEX[token] for token in (kind, *name, END)])
    return Recording(f"{kind.strip('<>')}_{name}", name, tokens[:-1], tokens[1:])


def _deal(recordings: Sequence[Recording], fold: int) -> Split:
    """No name is on two sides; surnames only are judged, as first names are few."""
    split = split_by_group(recordings, fold)
    first = _INDEX["<surname>"]
    validation, test = ([one for one in part if one.x[0] == first] for part in (split.validation, split.test))
    return Split(split.train, tuple(validation), tuple(test))


def _baselines(split: Split) -> dict[str, float]:
    return {"bigram": ngram_bits(split, 2), "trigram": ngram_bits(split, 3)}


def ngram_bits(split: Split, order: int, prior: float = 0.1) -> float:
    """Bits a letter of counting what follows the latest `order - 1` letters, each count begun at `prior`."""
    counts: Counter[tuple[int, ...]] = Counter()
    for recording in split.train:
        counts.update(_grams(recording, order))
    totals: Counter[tuple[int, ...]] = Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count
    grams = [gram for recording in split.test for gram in _grams(recording, order)]
    bits = (-math.log2((counts[gram] + prior) / (totals[gram[:-1]] + prior * len(TOKENS))) for gram in grams)
    return sum(bits) / len(grams)


def _grams(recording: Recording, order: int) -> list[tuple[int, ...]]:
    """Every letter with those before it; before the first there is its kind, again and again."""
    tokens = [int(recording.x[0])] * (order - 2) + [*recording.x.tolist(), int(recording.target[-1])]
    return [tuple(tokens[at : at + order]) for at in range(len(tokens) - order + 1)]
