"""The LSTM of arXiv 2402.01342 (table 4, IMDb): embedding, two recurrent layers, a linear head on the last time step.

Weights come from PyTorch's default initialiser and generator; ``build`` sets the seed. The data set defines which words
the tokens stand for.
"""

import torch
from torch import Tensor, nn

from fedpfn.models.layers import widened

VOCABULARY = 1000  # distinct tokens, including 0 (padding) and 1 (any other word)


class LSTM(nn.Module):
    """Tokens (batch, length) -> logits (batch, num_classes).

    The layers are two modules, so that each has its own names, mask and features. ``nn.LSTM`` calls its kernel with a
    separate list of weights; PyTorch renews it when ``functional_call`` swaps the parameters.
    """

    def __init__(self, num_classes: int, *, vocabulary: int, embedding: int, units: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm1 = nn.LSTM(embedding, units, batch_first=True)
        self.lstm2 = nn.LSTM(units, units, batch_first=True)
        self.head = nn.Linear(units, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Raises ``ValueError`` for inputs that are not tokens, and for a token outside the vocabulary."""
        self._require_tokens(tokens)
        features, _ = self.lstm1(self.embedding(tokens))
        features, _ = self.lstm2(features)
        logits: Tensor = self.head(features[:, -1])
        return logits

    def _require_tokens(self, tokens: Tensor) -> None:
        # checked here, because on a GPU an index out of range ends the process without a usable message
        if tokens.dtype != torch.int64 or tokens.dim() != 2:
            raise ValueError(f"lstm takes int64 tokens (batch, length), not {tokens.dtype} {tuple(tokens.shape)}")
        size = self.embedding.num_embeddings
        outside = tokens[(tokens < 0) | (tokens >= size)]
        if len(outside):
            raise ValueError(f"token {int(outside[0])} is outside the vocabulary of lstm, 0 to {size - 1}")


def lstm(input_shape: tuple[int, ...], num_classes: int, *, width_multiplier: float = 1.0) -> LSTM:
    """Return the LSTM for rows of tokens, ``input_shape`` (length,).

    ``width_multiplier`` scales the embedding (64) and both layers (256 units), not the vocabulary. Raises
    ``ValueError`` for an example that is not a row.

    >>> sum(parameter.numel() for parameter in lstm((200,), 2).parameters())
    920578
    """
    if len(input_shape) != 1:
        raise ValueError(f"lstm takes rows of tokens (length,), not inputs of shape {input_shape}")
    return LSTM(
        num_classes,
        vocabulary=VOCABULARY,
        embedding=widened(64, width_multiplier),
        units=widened(256, width_multiplier),
    )
