"""What the experiment asks of an encoder, and what it gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from corpora.corpus import Corpus

from fused_balanced_loss import LossSpec

Json = dict[str, Any]
Report = Callable[[Json], None]


class Encoder(Protocol):
    """A way from texts to logits that is trained with a loss of the family, with the same settings for all of them."""

    @property
    def name(self) -> str:
        """``tfidf``, or how the model is used and which: ``frozen:NAME``, ``frozen+tfidf:NAME``, ``bert:NAME``."""

    @property
    def num_epochs(self) -> int:
        """The most epochs a run takes, for the progress line."""

    @property
    def distributed(self) -> bool:
        """Whether the processes of torchrun train together; else the main one works, and the others end at once."""

    @property
    def settings(self) -> Json:
        """All that a result depends on besides corpus, loss and seed; a record with other settings is another run."""

    def prepare(self, corpus: Corpus, say: Callable[[str], None]) -> None:
        """Computes or finds what all runs share (features, tokens); called once, before the first run.

        say: told how far it is, in a line that the next replaces.

        Raises:
            EncoderError: where the encoder cannot be had.
        """

    def run(self, corpus: Corpus, spec: LossSpec, seed: int, folder: Path, report: Report) -> Json:
        """Trains with one loss and scores the epoch with the best validation micro-F1.

        Args:
            folder: the run's own, for checkpoints. It outlives a kill, so that the next call goes on from there, and
                the experiment removes it when the result is recorded.
            report: called after every epoch with ``number``, ``loss``, ``micro_f1``, ``threshold`` and ``seconds``;
                after a resumption with the earlier epochs first.

        Returns:
            What :func:`encoders.scoring.score_test` returns, with ``best_epoch``, ``threshold``, ``validation``,
            ``seconds`` and ``peak_memory_bytes``.
        """


class EncoderError(Exception):
    """The encoder cannot be had: unknown model, no network, a package missing."""
