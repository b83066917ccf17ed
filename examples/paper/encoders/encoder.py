"""What the experiment asks of an encoder, and what it gets."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from corpora.corpus import Corpus
from files import Json

from fused_balanced_loss import LossSpec

Report = Callable[[Json], None]


class EncoderError(Exception):
    """The encoder cannot be had: unknown model, no network, a package missing."""


class TrainedModel(NamedTuple):
    """The model at its own best: ``write`` fills a folder and returns what loading needs besides, ``own`` is what
    ``score_validation`` gave under that name."""

    write: Callable[[Path], Json]
    own: Json


class Encoder(Protocol):
    """A way from texts to logits that is trained with a loss of the family, with the same settings for all of them.

    Attributes:
        name: ``tfidf``, or how the model is used and which: ``frozen:NAME``, ``frozen+tfidf:NAME``, ``bert:NAME``.
        num_epochs: the most epochs a run takes, for the progress line.
        distributed: whether the processes of torchrun train together; else the main one works, the others end at once.
        settings: all that a result depends on besides corpus, loss and seed; a record with others is another run.
    """

    @property
    def name(self) -> str: ...
    @property
    def num_epochs(self) -> int: ...
    @property
    def distributed(self) -> bool: ...
    @property
    def settings(self) -> Json: ...

    def prepare(self, corpus: Corpus) -> None:
        """Computes or finds what all runs share (features, tokens); called once, before the first run.

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
            What :func:`encoders.scoring.score_test` and ``score_own`` return, with ``best_epoch``, ``threshold``,
            ``validation``, ``at_edge``, ``own_epoch``, ``seconds`` and ``peak_memory_bytes``, and ``model``, a
            :class:`TrainedModel`.
        """
