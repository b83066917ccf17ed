"""A trained head over features that are computed once: TF-IDF, a frozen pretrained encoder's, or both."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from corpora.corpus import Corpus
from files import Json

from encoders.encoder import Report, TrainedModel
from encoders.features import frozen_features, tfidf_features, tfidf_vectorizer
from encoders.frozen import FrozenEncoder, model_name
from encoders.head import HeadSettings, HeadTraining, Inputs
from encoders.saved_head import SavedHead
from encoders.scoring import GRIDS
from encoders.tfidf import TfidfSettings
from fused_balanced_loss import LossSpec


@dataclass
class FeatureEncoder:
    """See :class:`encoders.encoder.Encoder`.

    Args:
        kind: ``tfidf``, ``frozen`` or ``frozen+tfidf``.
        model: name or local folder of the frozen encoder.
        max_length: tokens of a text that the frozen encoder reads.
        cache: folder of the features.
        fused_classifier: classifier and loss in one; the result is the same but for rounding.
    """

    kind: str
    head: HeadSettings
    tfidf: TfidfSettings
    model: str
    max_length: int
    cache: Path
    fused_classifier: bool = False
    thresholds: Sequence[float] = GRIDS["paper"]
    inputs: dict[str, Inputs] = field(default_factory=dict)

    distributed = False

    @cached_property
    def name(self) -> str:
        return self.kind if self.kind == "tfidf" else f"{self.kind}:{model_name(self.model)}"

    @property
    def num_epochs(self) -> int:
        return self.head.epochs

    @property
    def settings(self) -> Json:
        words = {"tfidf": asdict(self.tfidf)} if "tfidf" in self.kind else {}
        length = {"max_length": self.max_length} if "frozen" in self.kind else {}
        fused = {"fused_classifier": True} if self.fused_classifier else {}
        return {"training": self.head.as_json(), **words, **length, **fused}

    def prepare(self, corpus: Corpus) -> None:
        words, features = {}, {}
        if "tfidf" in self.kind:
            words = tfidf_features(corpus, self.tfidf, self.cache)
        if "frozen" in self.kind:
            features = frozen_features(corpus, self.model, self.max_length, self.cache)
        self.inputs = {part: Inputs(words.get(part), features.get(part)) for part in corpus.splits}

    def run(self, corpus: Corpus, spec: LossSpec, seed: int, folder: Path, report: Report) -> Json:
        training = HeadTraining(corpus, self.inputs, spec, self.head, seed, self.fused_classifier, self.thresholds)

        def write(folder: Path) -> Json:
            vectorizer = tfidf_vectorizer(corpus, self.tfidf, self.cache) if "tfidf" in self.kind else None
            frozen = FrozenEncoder(self.model, self.max_length) if "frozen" in self.kind else None
            return SavedHead(training.head, vectorizer, frozen).save(folder, self.head, self.tfidf)

        return {**training.run(folder, report), "model": TrainedModel(write, training.best["own"])}
