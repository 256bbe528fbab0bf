"""The sentiment model of the notebook "Fun with Sparse PyTorch Models", slide 12: embedding, LSTM, Linear."""

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sparsefleet import DataInfo, Model, UserError, hookimpl

_PADDING = 0


class LastState(nn.Module):
    """Embedding, LSTM, and a Linear layer on the hidden state at the last token that is not padding."""

    def __init__(self, vocabulary: int, embed_dim: int, hidden: int, n_outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embed_dim, padding_idx=_PADDING)
        self.lstm = nn.LSTM(embed_dim, hidden, batch_first=True)
        self.fc = nn.Linear(hidden, n_outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(batch, length)`` int64 to ``(batch, n_outputs)``; an empty sentence has the state after one padding token."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        last = ((tokens != _PADDING) * places).amax(1)
        states, _ = self.lstm(self.embedding(tokens))
        chosen: Tensor = states[torch.arange(len(tokens), device=tokens.device), last]
        logits: Tensor = self.fc(chosen)
        return logits


class SentimentLstm(Model):
    """An embedding, a one-layer LSTM, and a Linear layer on the hidden state at a sentence's last token; padding behind it changes nothing.

    The slide takes the state after the last step, which is a state of padding for all but the longest sentence. There is no activation to
    choose: the LSTM's sigmoid and tanh are its own.
    """

    name = "sentiment-lstm"
    paper = "Fun with Sparse PyTorch Models via Hadamard Parametrization, slide 12; doi:10.1162/neco.1997.9.8.1735"
    rule = "outputs = W h(last token) + b, h of an LSTM over embedded tokens; token 0 is padding"
    cannot = "Inputs that are not tokens. It runs from left to right only."
    chain = ()
    kinds: ClassVar[tuple[str, ...]] = ("Linear", "Embedding:prune_embedding=true")

    embed_dim: int = Field(100, ge=1, description="numbers per token")
    hidden: int = Field(256, ge=1, description="units of the LSTM")
    prune_embedding: bool = Field(False, description="the embedding's table may become sparse as well")

    def build(self, data: DataInfo, act: Callable[[int], nn.Module]) -> nn.Module:
        """``(batch, length)`` int64 to ``(batch, n_outputs)``."""
        if not data.vocabulary or len(data.input_shape) != 1:
            raise UserError(f"model {self.name!r} takes sentences of tokens; the data set has inputs of shape {data.input_shape}")
        return LastState(data.vocabulary, self.embed_dim, self.hidden, data.n_outputs)

    def prunable(self, network: nn.Module) -> Sequence[str]:
        """The LSTM's and the Linear layer's weights, and the embedding's if asked for."""
        wanted = (nn.Linear, nn.Embedding) if self.prune_embedding else (nn.Linear,)
        return [name for name, module in network.named_modules() if isinstance(module, wanted)]

    def narrowed(self, factor: float) -> "SentimentLstm":
        """``embed_dim`` and ``hidden`` times ``factor``, rounded, at least 1."""
        embed_dim, hidden = (max(1, round(width * factor)) for width in (self.embed_dim, self.hidden))
        return self.model_copy(update={"embed_dim": embed_dim, "hidden": hidden})


@hookimpl
def sparsefleet_models() -> list[type[Model]]:
    """Registers this module's model."""
    return [SentimentLstm]
