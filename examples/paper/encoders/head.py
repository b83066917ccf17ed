"""A network with one hidden layer over sparse words, dense features or both."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from settings import integer, not_negative, number, positive, setting
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadSettings:
    """Network and training, the same for every loss."""

    hidden: int = setting(256, integer(1), "units of the hidden layer")
    dropout: float = setting(0.5, number(0, 1, closed=True), "of the hidden layer")
    initial_std: float = 0.02
    learning_rate: float = setting(1e-2, positive, "its peak")
    weight_decay: float = setting(0.0, not_negative, "AdamW's")
    batch_size: int = setting(64, integer(1), "documents a step")
    epochs: int = setting(20, integer(1), "passes over the training documents")


@dataclass(frozen=True)
class Inputs:
    """Sparse features [N, V], dense features [N, D], or both, of the same documents; may lie on disk."""

    words: csr_matrix | None = None
    features: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        present = self.words if self.features is None else self.features
        return int(present.shape[0]) if present is not None else 0

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> "Inputs":
        dense = None if self.features is None else np.require(self.features[rows], requirements=("C", "W"))
        return Inputs(None if self.words is None else self.words[rows], dense)


class Head(nn.Module):
    """Logits [n, C]; of the sparse features the hidden layer reads the nonzero ones alone.

    Args:
        like: the training inputs, whose widths are taken and whose dense features' mean and deviation are brought to 0
            and 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, like: Inputs, num_labels: int, settings: HeadSettings) -> None:
        super().__init__()
        self.words: nn.EmbeddingBag | None = None
        self.features: nn.Linear | None = None
        if like.words is not None:
            self.words = nn.EmbeddingBag(like.words.shape[1], settings.hidden, mode="sum")
            # PyTorch's standard deviation of 1 drowns what rare words learn.
            nn.init.normal_(self.words.weight, std=settings.initial_std)
        if like.features is not None:
            scaler = StandardScaler()
            for start in range(0, len(like.features), 4096):
                scaler.partial_fit(like.features[start : start + 4096].astype(np.float64))
            self.register_buffer("mean", torch.from_numpy(scaler.mean_).float())
            self.register_buffer("std", torch.from_numpy(np.sqrt(np.maximum(scaler.var_, 1e-12))).float())
            self.features = nn.Linear(like.features.shape[1], settings.hidden, bias=False)
            nn.init.normal_(self.features.weight, std=settings.initial_std)
        self.bias = nn.Parameter(torch.zeros(settings.hidden))
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(settings.hidden, num_labels)

    def forward(self, inputs: Inputs) -> Tensor:
        logits: Tensor = self.output(self.hidden(inputs))
        return logits

    def hidden(self, inputs: Inputs) -> Tensor:
        """[n, hidden], what the last layer reads."""
        device, hidden, words = self.bias.device, self.bias, inputs.words
        if self.words is not None and words is not None:
            arrays = words.indices, words.indptr[:-1], words.data
            columns, offsets, values = (torch.from_numpy(array).to(device) for array in arrays)
            hidden = hidden + self.words(columns, offsets, per_sample_weights=values)
        if self.features is not None and inputs.features is not None:
            features = torch.from_numpy(inputs.features).to(device)
            hidden = hidden + self.features((features - self.mean) / self.std)
        dropped: Tensor = self.dropout(torch.relu(hidden))
        return dropped
