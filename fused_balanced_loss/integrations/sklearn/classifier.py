"""The estimator: its parameters, and how it is fitted."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import issparse
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight

from ...label_statistics import LabelStatistics
from ...spec import LossSpec
from ...targets import SparseTargets
from .fitted import FittedClassifier
from .network import Network, Optimizer
from .parameters import check_parameters, chosen_device
from .targets import Labels, read_targets, tells_labels
from .training import Samples, check_classes, loss_spec, resolved_batch_size, split, train, train_epoch


class BalancedClassifier(FittedClassifier):
    """A linear classifier, or one hidden layer, for many labels of which most are rare.

    It minimises a balanced loss (Huang et al., EMNLP 2021) in mini-batches and changes the weights in the backward: the
    gradient of a weight never exists whole. Sparse features stay sparse, and a step touches the weights of the
    features that occur in its batch alone. Features should be of about one size, as those of TfidfVectorizer or
    StandardScaler are.

    Targets of one class a sample are taken too, one class against the rest.

    Args:
        loss: name of a preset, such as ``"DB"``, ``"CB-NTR"`` or ``"BCE"`` (see :meth:`LossSpec.preset`), or a
            LossSpec. A preset's ``mu`` is taken from the training targets (:meth:`LabelStatistics.suggest_mu`).
        hidden_layer_size: units of a hidden layer with ReLU; None for a linear classifier.
        optimizer: ``"adamw"`` or ``"sgd"``. For sparse features moments and weight decay rest while a feature does not
            occur.
        optimizer_state: AdamW's: ``"row"`` (2 bytes a weight), ``"bfloat16"`` (4) or ``"float32"`` (8); see
            :class:`AdamWUpdate`. With sparse features a row is a feature's weights, else a label's. The state is kept
            as long as training may go on: after ``partial_fit``, and after ``fit`` with ``warm_start``.
        learning_rate: of all steps.
        weight_decay: decoupled for AdamW, an L2 penalty for SGD.
        batch_size: samples a step; ``"auto"`` takes a hundredth of them, at least 8 and at most 64.
        max_iter: the most epochs.
        early_stopping: whether training ends after ``n_iter_no_change`` epochs, of 500 steps in all or more, without a
            better score on the validation part (micro-F1 at its best threshold; for one class a sample, accuracy). The
            weights of the best epoch are kept, which takes another copy of them.
        validation_fraction: share of the samples that training leaves out for early stopping and for the threshold.
        n_iter_no_change: see ``early_stopping``.
        threshold: the probability above which a label is predicted. ``"validation"`` takes the one with the best
            micro-F1 on the validation part. Of no meaning for one class a sample.
        random_state: draws validation part, first weights and order of the samples. The same number gives the same
            result on one machine.
        warm_start: whether ``fit`` goes on from the weights that are there.
        verbose: whether a line is printed after each epoch.
        device: trains, and predicts afterwards, such as ``"cuda"``; None takes a GPU where there is one. What was
            pickled predicts on the CPU.
        dtype: of the weights, ``"float32"`` or ``"bfloat16"``.

    Attributes:
        classes_: the label ids 0 to C - 1; for one class a sample, the sorted classes.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
        threshold_: the probability above which a label is predicted; may be assigned, also one for each label [C].
        statistics_: LabelStatistics of the samples that were trained with.
        spec_: the LossSpec, with its ``mu``.
        n_iter_: epochs that were trained.
        loss_curve_: mean loss of each epoch.
        validation_scores_: score of each epoch on the validation part, with early stopping.
        coef_, intercept_: float32 [C, F] and [C], of a linear classifier; two classes share one row.
    """

    n_features_in_: int
    statistics_: LabelStatistics
    spec_: LossSpec
    _num_samples: int
    _random: np.random.RandomState

    def __init__(
        self,
        loss: str | LossSpec = "DB",
        *,
        hidden_layer_size: int | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        optimizer_state: Literal["float32", "bfloat16", "row"] = "row",
        learning_rate: float = 0.003,
        weight_decay: float = 0.0,
        batch_size: int | Literal["auto"] = "auto",
        max_iter: int = 100,
        early_stopping: bool = True,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        threshold: float | Literal["validation"] = "validation",
        random_state: Any = None,
        warm_start: bool = False,
        verbose: bool | int = False,
        device: str | torch.device | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.loss = loss
        self.hidden_layer_size = hidden_layer_size
        self.optimizer = optimizer
        self.optimizer_state = optimizer_state
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.threshold = threshold
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.device = device
        self.dtype = dtype

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BalancedClassifier:
        """Trains from the beginning, or on, with ``warm_start``.

        Args:
            X: features [n, F], dense or sparse. Sparse ones are never made dense.
            y: multi-hot [n, C], dense or scipy sparse; or each sample's label ids, as a list of lists, for which
                C is the largest id + 1; or [n], the class of each sample. Lists of equal length with nothing but 0 and
                1 are multi-hot, as everywhere in scikit-learn, unless earlier targets were label ids. ``score`` and
                GridSearchCV take no label ids: that is scikit-learn's own rule.
            sample_weight: [n], factors of the samples' losses; those of weight 0 are left out.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        check_parameters(self)
        go_on = self.warm_start and hasattr(self, "_network")
        self._random = random = check_random_state(self.random_state)
        samples, labels = self._read(X, y, sample_weight, None, go_on)
        validates = self.early_stopping or (labels.multilabel and self.threshold == "validation")
        rows, held_out = split(samples, self.validation_fraction if validates else 0.0, random)
        check_classes(samples.targets[rows], labels)
        self._count(samples.targets[rows], go_on=False)
        self._begin(samples, labels, go_on, random)
        progress = train(self._network, samples, rows, held_out, self._labels, self, random)
        self.n_iter_ = len(progress.losses)
        self.loss_curve_, self.validation_scores_ = progress.losses, progress.scores
        if progress.threshold is not None:
            self.threshold_ = progress.threshold
        if not self.warm_start:
            self._network.set_optimizer(None)
        return self

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
    ) -> BalancedClassifier:
        """Trains on, with one pass over these samples in random order.

        The label counts are those of all samples so far, and ``mu`` is the mean over the labels that have occurred. The
        threshold stays the one that ``fit`` has found, or is 0.5.

        Args:
            X, y, sample_weight: see :meth:`fit`.
            classes: all label ids, such as ``range(C)``, or all classes. The first call needs them where y does not
                tell them, as multi-hot targets do.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        check_parameters(self)
        go_on = hasattr(self, "_network")
        if not go_on:
            if classes is None and not tells_labels(y):
                raise ValueError("classes: expected all classes or label ids in the first partial_fit, got None")
            self._random = check_random_state(self.random_state)
        samples, labels = self._read(X, y, sample_weight, classes, go_on)
        rows, _ = split(samples, 0.0, self._random, at_least=1)
        self._count(samples.targets[rows], go_on)
        self._begin(samples, labels, go_on, self._random)
        size = resolved_batch_size(self.batch_size, len(rows))
        loss = train_epoch(self._network, samples, self._random.permutation(rows), size)
        self.loss_curve_ = [*(self.loss_curve_ if go_on else []), loss]
        self.n_iter_ = len(self.loss_curve_)
        return self

    def _read(self, X: Any, y: Any, sample_weight: Any, classes: Any, go_on: bool) -> tuple[Samples, Labels]:
        """Checked samples, and what their targets say."""
        X = self._features(X, reset=not go_on)
        labels, targets = read_targets(y, self._labels if go_on else None, classes)
        if len(targets) != X.shape[0]:
            raise ValueError(f"y: expected {X.shape[0]} samples, as in X, got {len(targets)}")
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        return Samples(X, targets, weight), labels

    def _count(self, targets: SparseTargets, go_on: bool) -> None:
        """Sets the loss for training with these targets, or with these after others."""
        counts, number, occurrences = torch.bincount(targets.col, minlength=targets.num_labels), len(targets), 0
        if go_on:
            number, occurrences = number + self._num_samples, int(self.statistics_.counts.sum())
            counts = counts + self.statistics_.counts
        self._num_samples = number
        self.statistics_ = LabelStatistics(counts, max(number, 2), degenerate="ignore")
        before = (self.spec_.mu, occurrences) if occurrences and self.spec_.mu is not None else None
        self.spec_ = loss_spec(self.loss, self.statistics_, targets, before)

    def _begin(self, samples: Samples, labels: Labels, go_on: bool, random: np.random.RandomState) -> None:
        """Makes the network and its optimizer where there is none, and places it on the device."""
        if go_on:
            self._network.set_loss(self.spec_, self.statistics_)
        else:
            self._labels, self.classes_ = labels, labels.classes
            draws = torch.Generator().manual_seed(int(random.randint(2**31)))
            self._network = Network(
                self.n_features_in_,
                self._labels.num_columns,
                self.spec_,
                self.statistics_,
                hidden=self.hidden_layer_size,
                sparse=issparse(samples.features),
                random=draws,
                dtype=getattr(torch, self.dtype),
            )
            fixed = self._labels.multilabel and self.threshold != "validation"
            self.threshold_ = float(self.threshold) if fixed else 0.5
        self._network.to(chosen_device(self.device))
        seed = int(random.randint(2**31)) if self._network.optimizer is None else self._network.optimizer.seed
        rates = float(self.learning_rate), float(self.weight_decay)
        self._network.set_optimizer(Optimizer(self.optimizer, *rates, self.optimizer_state, seed))
