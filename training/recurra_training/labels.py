"""What baselines and networks are called, for people."""

from typing import Final

LABELS: Final = {
    "majority": "always the most frequent class",
    "mean": "always the mean",
    "persistence": "persistence: it stays as it is",
    "ar12": "AR(12): linear in the last 12 readings",
    "bigram": "bigram: counts after 1 letter",
    "trigram": "trigram: counts after 2 letters",
    "ffnn": "feed-forward, no memory",
    "rnn": "RNN",
    "rnn-relu": "RNN with ReLU",
    "gru": "GRU",
    "lstm": "LSTM",
}


def label(name: str) -> str:
    """The name for people."""
    return LABELS.get(name, name)
