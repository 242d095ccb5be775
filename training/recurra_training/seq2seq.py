"""The encoder-decoder: one network reads a sequence, and the state it ends with is where another begins to write.

Sutskever, Vinyals and Le, 2014, arXiv:1409.3215; Cho et al., 2014, arXiv:1406.1078. The two are trained as one and
served as two models: the encoder answers its state, with which a session of the decoder is opened.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn

from recurra_training.cells import Cell
from recurra_training.describe import describe
from recurra_training.errors import RunError
from recurra_training.models import Network, RecurrentNet
from recurra_training.signature import Signature, TensorSpec

READ: Final = "read "
"""What the labels of the tokens that are read begin with, in the labels of the whole."""


class Encoder(nn.Module):
    """Reads tokens, and answers at each step what it remembers: the state itself, `[B, T, 1, hidden]`."""

    state_names = ("h",)

    def __init__(self, network: RecurrentNet) -> None:
        """Take the first layers of a network that has no use for its last one."""
        super().__init__()
        self.normalise, self.recurrence = network.normalise, network.recurrence

    def initial_states(self, batch: int) -> tuple[Tensor, ...]:
        """Zeros."""
        return (next(self.parameters()).new_zeros(1, batch, self.recurrence.hidden_size),)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        """Tokens `[B, T]` and the state before them -> what is remembered at each step, and the state after them."""
        y, h = self.recurrence(self.normalise(x), h)
        return y.unsqueeze(2), h


class EncoderDecoder(Network):
    """Both, for training: x `[B, T]` holds the tokens that are read, then those that the decoder is fed.

    Tokens below `source_tokens` are read; token `source_tokens + k` feeds the decoder its own token k. The outputs
    are the decoder's logits where it is fed, and 0 where the encoder reads.
    """

    def __init__(
        self, inputs: int, outputs: int, *, tokens: int, source_tokens: int, cell: Cell, layers: int = 1, **options: Any
    ) -> None:
        """Build both.

        Raises:
            RunError: The encoder's state is not what it answers: it is no RNN or GRU of one layer.
        """
        if layers != 1 or cell not in ("rnn", "rnn-relu", "gru"):
            raise RunError(f"an encoder-decoder is of cell rnn, rnn-relu or gru and of 1 layer, not {cell} of {layers}")
        super().__init__(inputs, outputs, tokens=tokens)
        self.normalise = nn.Identity()  # each half reads tokens of its own
        self.source_tokens = source_tokens
        self.encoder = Encoder(RecurrentNet(inputs, 1, tokens=source_tokens, cell=cell, **options))
        self.decoder = RecurrentNet(inputs, outputs, tokens=tokens - source_tokens, cell=cell, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """`x` `[B, T]` -> (logits `[B, T, outputs]`,)."""
        read = (x < self.source_tokens) & (x > 0)  # 0 is the blank that a batch is filled up with
        lengths = read.sum(1)
        longest = int(lengths.max())
        seen, _ = self.encoder(x[:, :longest].clamp(max=self.source_tokens - 1), *self.encoder.initial_states(len(x)))
        state = seen[torch.arange(len(x)), lengths - 1].transpose(0, 1).contiguous()
        # Each row's second part, moved to the left; what lies past its end is cut off again by the mask.
        places = lengths[:, None] + torch.arange(x.shape[1] - int(lengths.min()))
        fed = x.gather(1, places.clamp(max=x.shape[1] - 1)) - self.source_tokens
        logits, _ = self.decoder(fed.clamp(min=0), state)
        padded = logits.new_zeros(len(x), int(places.max()) + 1, self.outputs)
        y = padded.scatter(1, places[..., None].expand_as(logits), logits)
        return (y[:, : x.shape[1]],)


def halves(network: EncoderDecoder, signature: Signature) -> list[tuple[str, nn.Module, Signature]]:
    """The two models it is served as, with the endings of their names; `signature` is that of the whole."""
    tokens, letters = signature.inputs[0].labels, signature.outputs[0].labels
    read = TensorSpec(
        "x", "int64", (), labels=tuple(token.removeprefix(READ) for token in tokens[: network.source_tokens])
    )
    state = network.encoder.recurrence.hidden_size
    encoder = describe(
        network.encoder,
        read,
        TensorSpec("state", "float32", (1, state), kind="value"),
        description=f"{signature.description} This half reads: its last answer is the h_in that opens the other half.",
    )
    decoder = describe(
        network.decoder,
        TensorSpec("x", "int64", (), labels=letters),
        signature.outputs[0],
        description=f"{signature.description} This half writes.",
        feedback=signature.feedback,
    )
    return [("-encoder", network.encoder, encoder), ("-decoder", network.decoder, decoder)]
