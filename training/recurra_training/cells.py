"""The kinds of network. A file of its own, so that the command line can name them without loading PyTorch."""

from typing import Literal

Cell = Literal["ffnn", "rnn", "rnn-relu", "gru", "lstm"]
"""ffnn: feed-forward, no memory. rnn, rnn-relu: h' = tanh or ReLU of W x + R h + b (Elman, 1990). gru: gated
recurrent unit (Cho et al., 2014). lstm: long short-term memory with forget gate (Gers et al., 2000)."""
