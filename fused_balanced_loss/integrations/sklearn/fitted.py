"""What a fitted classifier of scikit-learn does: predictions, coefficients, copies for other machines."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from .network import Network
from .targets import Labels
from .training import best_class


class FittedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """The part of BalancedClassifier that trains nothing."""

    classes_: NDArray[Any]
    threshold_: float | NDArray[np.float64]
    _labels: Labels
    _network: Network

    def decision_function(self, X: Any) -> NDArray[Any]:
        """The logits less that of the threshold: a label is predicted where it is above 0.

        Returns:
            [n, C], or [n] for two classes; float32 for float32 features, else float64.
        """
        X = self._features(X)
        cut = self._cut()
        found = self._apply(X, lambda logits: logits - cut)
        return found[:, 0] if len(self.classes_) == 2 and not self._labels.multilabel else found

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """The sigmoids of the logits; for one class a sample, they are divided by their sum.

        Returns:
            [n, C]; float32 for float32 features, else float64.
        """
        found = self._apply(self._features(X), torch.sigmoid)
        if self._labels.multilabel:
            return found
        if found.shape[1] == 1:
            return np.hstack([1 - found, found])
        return found / found.sum(1, keepdims=True)

    def predict(self, X: Any) -> Any:
        """The labels whose probability is above ``threshold_``, or the class of each sample.

        Returns:
            int64 [n, C] of 0 and 1, or as scipy.sparse.csr_array where ``fit`` had sparse targets or label ids; or
            classes [n].
        """
        X = self._features(X)
        cut = self._cut()
        if not self._labels.multilabel:
            return self.classes_[np.concatenate([best_class(logits) for _, logits in self._network.logits(X)])]
        if not self._labels.sparse:
            return self._apply(X, lambda logits: logits > cut, np.int64)
        above = ((logits.double() > cut).cpu().numpy() for _, logits in self._network.logits(X))
        return vstack([csr_array(part, dtype=np.int64) for part in above], format="csr")

    def _cut(self) -> torch.Tensor:
        """The logit of ``threshold_``, float64 [] or [C], on the device of the network."""
        threshold = torch.as_tensor(self.threshold_, dtype=torch.float64, device=self._network.device)
        if threshold.shape not in ((), self.classes_.shape) or not bool(((threshold >= 0) & (threshold <= 1)).all()):
            raise ValueError(
                f"threshold_: expected a number in [0, 1], or one for each of the {len(self.classes_)} labels, got "
                f"{self.threshold_!r}"
            )
        return torch.logit(threshold)

    @property
    def coef_(self) -> NDArray[np.float32]:
        """[C, F], the weights of a linear classifier; two classes share one row."""
        return self._coefficients()[0]

    @property
    def intercept_(self) -> NDArray[np.float32]:
        """[C], the bias of a linear classifier."""
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

    def _features(self, X: Any, *, reset: bool = False) -> Any:
        if not reset:
            check_is_fitted(self)
        return validate_data(self, X, reset=reset, accept_sparse="csr", dtype=[np.float64, np.float32])

    def _apply(self, X: Any, function: Callable[[torch.Tensor], torch.Tensor], dtype: Any = None) -> NDArray[Any]:
        """[n, C], the function of the float64 logits; None gives it in the dtype of X."""
        return self._network.of_logits(X, function, X.dtype if dtype is None else dtype)

    def _coefficients(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        found = self._network.coefficients() if hasattr(self, "_network") else None
        if found is None:
            raise AttributeError("coef_ and intercept_: expected a fitted classifier without hidden layer")
        return found
