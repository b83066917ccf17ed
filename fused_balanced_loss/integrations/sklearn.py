"""A multi-label classifier for scikit-learn, trained with the balanced losses::

classifier = make_pipeline(TfidfVectorizer(), BalancedClassifier())
classifier.fit(texts, indicators).predict(more_texts)
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ..label_statistics import LabelStatistics
from ..spec import LossSpec
from ..targets import SparseTargets

try:
    from scipy.sparse import csr_array, issparse, vstack
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"fused_balanced_loss.integrations.sklearn needs scikit-learn 1.6 or newer: pip install scikit-learn ({error})"
    ) from error

from .sklearn_network import Network, Optimizer
from .sklearn_parameters import check_parameters, chosen_device
from .sklearn_targets import read_targets, tells_labels
from .sklearn_training import Progress, Samples, best_class, classes_of, split, train_epoch, validate


class BalancedClassifier(ClassifierMixin, BaseEstimator):
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
        optimizer_state: AdamW's: ``"float32"`` (8 bytes a weight), ``"bfloat16"`` (4) or ``"row"`` (2); see
            :class:`AdamWUpdate`. It is kept as long as training may go on: after ``partial_fit``, and after ``fit``
            with ``warm_start``.
        learning_rate: of all steps.
        weight_decay: decoupled for AdamW, an L2 penalty for SGD.
        batch_size: samples a step.
        max_iter: the most epochs.
        early_stopping: whether training ends after ``n_iter_no_change`` epochs without a better score on the validation
            part (micro-F1 at its best threshold; for one class a sample, accuracy). The weights of the best epoch are
            kept, which takes another copy of them.
        validation_fraction: share of the samples that training leaves out for early stopping and for the threshold.
        n_iter_no_change: see ``early_stopping``.
        threshold: the probability above which a label is predicted. ``"validation"`` takes the one with the best
            micro-F1 on the validation part. Of no meaning for one class a sample.
        random_state: draws validation part, first weights and order of the samples. The same number gives the same
            result on one machine.
        warm_start: whether ``fit`` goes on from the weights that are there.
        verbose: whether a line is printed after each epoch.
        device: such as ``"cuda"``; None takes a GPU where there is one.
        dtype: of the weights, ``"float32"`` or ``"bfloat16"``.

    Attributes:
        classes_: the label ids 0 to C - 1; for one class a sample, the sorted classes.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.
        threshold_: the probability above which a label is predicted.
        statistics_: LabelStatistics of the samples that were trained with.
        spec_: the LossSpec, with its ``mu``.
        n_iter_: epochs that were trained.
        loss_curve_: mean loss of each epoch.
        validation_scores_: score of each epoch on the validation part, with early stopping.
        coef_, intercept_: float32 [C, F] and [C], of a linear classifier; two classes share one row.
    """

    def __init__(
        self,
        loss: str | LossSpec = "DB",
        *,
        hidden_layer_size: int | None = None,
        optimizer: Literal["adamw", "sgd"] = "adamw",
        optimizer_state: Literal["float32", "bfloat16", "row"] = "float32",
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        batch_size: int = 64,
        max_iter: int = 50,
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

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> BalancedClassifier:  # noqa: N803
        """Trains from the beginning, or on, with ``warm_start``.

        Args:
            X: features [n, F], dense or sparse. Sparse ones are never made dense.
            y: multi-hot [n, C], dense or scipy sparse; or each sample's label ids, as a list of lists, for which
                C is the largest id + 1; or [n], the class of each sample. Lists of equal length with nothing but 0 and
                1 are multi-hot, as everywhere in scikit-learn.
            sample_weight: [n], factors of the samples' losses; those of weight 0 are left out.

        Raises:
            ValueError, TypeError: naming the argument, what was expected and what came.
        """
        check_parameters(self)
        go_on = self.warm_start and hasattr(self, "_network")
        self._random = random = check_random_state(self.random_state)
        samples = self._read(X, y, sample_weight, None, go_on)
        validates = self.early_stopping or (self._labels.multilabel and self.threshold == "validation")
        rows, held_out = split(samples, self.validation_fraction if validates else 0.0, random)
        if not self._labels.multilabel and len(np.unique(classes_of(samples.targets[rows], self._labels))) < 2:
            raise ValueError("y: expected samples of at least 2 classes to train with, got 1 class")
        self._count(samples.targets[rows], go_on=False)
        self._begin(samples, go_on, random)
        progress = Progress(self._network, self.early_stopping, self.n_iter_no_change)
        for epoch in range(1, self.max_iter + 1):
            progress.loss(train_epoch(self._network, samples, random.permutation(rows), self.batch_size))
            if held_out is not None and (self.early_stopping or epoch == self.max_iter):
                progress.score(*validate(self._network, held_out, self._labels, self.threshold))
            if self.verbose:
                print(progress)
            if progress.is_over:
                break
        progress.take_best()
        self.n_iter_, self.loss_curve_, self.validation_scores_ = epoch, progress.losses, progress.scores
        if progress.threshold is not None:
            self.threshold_ = progress.threshold
        if not self.warm_start:
            self._network.set_optimizer(None)
        return self

    def partial_fit(
        self,
        X: Any,  # noqa: N803
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
    ) -> BalancedClassifier:
        """Trains on, with one pass over these samples in random order.

        The label counts are those of all samples so far, and ``mu`` is the mean over the labels that have occurred. The
        threshold stays the one that ``fit`` has found, or is 0.5; assign ``threshold_`` for another.

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
                raise ValueError(
                    "classes: expected all classes or label ids in the first call of partial_fit, got None"
                )
            self._random = check_random_state(self.random_state)
        samples = self._read(X, y, sample_weight, classes, go_on)
        rows, _ = split(samples, 0.0, self._random)
        self._count(samples.targets[rows], go_on)
        self._begin(samples, go_on, self._random)
        loss = train_epoch(self._network, samples, self._random.permutation(rows), self.batch_size)
        self.loss_curve_ = [*(self.loss_curve_ if go_on else []), loss]
        self.n_iter_ = len(self.loss_curve_)
        return self

    def decision_function(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The logits less that of the threshold: a label is predicted where it is above 0.

        Returns:
            [n, C], or [n] for two classes; float32 for float32 features, else float64.
        """
        X = self._features(X)  # noqa: N806
        shift = float(np.log(self.threshold_ / (1 - self.threshold_)))
        found = self._fill(X, lambda logits: logits - shift)
        return found[:, 0] if len(self.classes_) == 2 and not self._labels.multilabel else found

    def predict_proba(self, X: Any) -> NDArray[Any]:  # noqa: N803
        """The sigmoids of the logits; for one class a sample, they are divided by their sum.

        Returns:
            [n, C]; float32 for float32 features, else float64.
        """
        found = self._fill(self._features(X), torch.sigmoid)
        if self._labels.multilabel:
            return found
        if found.shape[1] == 1:
            return np.hstack([1 - found, found])
        return found / found.sum(1, keepdims=True)

    def predict(self, X: Any) -> Any:  # noqa: N803
        """The labels whose probability is above ``threshold_``, or the class of each sample.

        Returns:
            int64 [n, C] of 0 and 1, or as scipy.sparse.csr_array where ``fit`` had sparse targets or label ids; or
            classes [n].
        """
        X = self._features(X)  # noqa: N806
        cut = float(np.log(self.threshold_ / (1 - self.threshold_)))
        if not self._labels.multilabel:
            return self.classes_[np.concatenate([best_class(logits) for _, logits in self._placed().logits(X)])]
        if not self._labels.sparse:
            return self._fill(X, lambda logits: logits - cut > 0, np.int64)
        found = [
            csr_array((logits.double() - cut > 0).numpy(), dtype=np.int64) for _, logits in self._placed().logits(X)
        ]
        return vstack(found, format="csr")

    @property
    def coef_(self) -> NDArray[np.float32]:
        return self._coefficients()[0]

    @property
    def intercept_(self) -> NDArray[np.float32]:
        return self._coefficients()[1]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_network")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_label = True
        return tags

    def __getstate__(self) -> dict[str, Any]:
        # A machine without a GPU must be able to load it.
        state: dict[str, Any] = dict(super().__getstate__())
        if "_network" in state and self._network.device.type != "cpu":
            state["_network"] = copy.deepcopy(self._network).to("cpu")
        return state

    def _features(self, X: Any, *, reset: bool = False) -> Any:  # noqa: N803
        if not reset:
            check_is_fitted(self)
        return validate_data(self, X, reset=reset, accept_sparse="csr", dtype=[np.float64, np.float32])

    def _read(self, X: Any, y: Any, sample_weight: Any, classes: Any, go_on: bool) -> Samples:  # noqa: N803
        """Checked samples; sets the labels in a first training."""
        X = self._features(X, reset=not go_on)  # noqa: N806
        labels, targets = read_targets(y, self._labels if go_on else None, classes)
        if len(targets) != X.shape[0]:
            raise ValueError(f"y: expected {X.shape[0]} samples, as in X, got {len(targets)}")
        weight = None
        if sample_weight is not None:
            weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        if not go_on:
            self._labels, self.classes_ = labels, labels.classes
        return Samples(X, targets, weight)

    def _count(self, targets: SparseTargets, go_on: bool) -> None:
        """Sets the loss for training with these targets, or with these after others."""
        counts, number, occurrences = torch.bincount(targets.col, minlength=targets.num_labels), len(targets), 0
        if go_on:
            number, occurrences = number + self._num_samples, int(self.statistics_.counts.sum())
            counts = counts + self.statistics_.counts
        self._num_samples = number
        self.statistics_ = LabelStatistics(counts, max(number, 2), degenerate="ignore")
        spec = self.loss if isinstance(self.loss, LossSpec) else LossSpec.preset(self.loss)
        if spec.weighting == "rebalanced" and (isinstance(self.loss, str) or spec.mu is None):
            new = len(targets.col)
            if not (new or occurrences):
                raise ValueError("y: expected at least one label, from which the loss takes mu, got none")
            mu = self.statistics_.suggest_mu(targets) * new / (occurrences + new) if new else 0.0
            if occurrences:
                mu += self.spec_.mu * occurrences / (occurrences + new)
            spec = spec.replace(mu=mu)
        self.spec_ = spec

    def _begin(self, samples: Samples, go_on: bool, random: np.random.RandomState) -> None:
        """Makes the network and its optimizer where there is none, and places it on the device."""
        if go_on:
            self._network.set_loss(self.spec_, self.statistics_)
        else:
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
        self._placed()
        if not self._network.has_optimizer:
            seed = int(random.randint(2**31))
            self._network.set_optimizer(
                Optimizer(self.optimizer, self.learning_rate, self.weight_decay, self.optimizer_state, seed)
            )

    def _placed(self) -> Network:
        return self._network.to(chosen_device(self.device))

    def _fill(self, X: Any, function: Callable[[torch.Tensor], torch.Tensor], dtype: Any = None) -> NDArray[Any]:  # noqa: N803
        """[n, C], the function of the float64 logits; None gives it in the dtype of X."""
        result = np.empty((X.shape[0], self._labels.num_columns), X.dtype if dtype is None else dtype)
        for rows, logits in self._placed().logits(X):
            result[rows] = function(logits.double()).cpu().numpy()
        return result

    def _coefficients(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = self._network.coefficients() if hasattr(self, "_network") else None
        if found is None:
            raise AttributeError("coef_ and intercept_: expected a fitted classifier without hidden layer")
        return found
