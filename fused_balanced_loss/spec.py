"""The settings of the one formula that every loss of the family follows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from .input_values import as_number

Weighting = Literal["none", "class_balanced", "rebalanced", "inverse_frequency", "sqrt_inverse_frequency"]
Pooling = Literal["label", "mean_count", "mean_weight", "rarest"]
Corpus = Literal["reuters", "pubmed"]
Convention = Literal["paper", "authors"]

WEIGHTINGS: tuple[str, ...] = get_args(Weighting)
POOLINGS: tuple[str, ...] = get_args(Pooling)
CORPORA: tuple[str, ...] = get_args(Corpus)
CONVENTIONS: tuple[str, ...] = get_args(Convention)
PAPER_LOSSES = ("BCE", "FL", "CB", "R-FL", "NTR-FL", "DB-0FL", "CB-NTR", "DB")
PRESETS = (*PAPER_LOSSES, "ASL")

PAPER_MU = {"reuters": 0.9, "pubmed": 0.05}


@dataclass(frozen=True)
class LossSpec:
    """Settings of a balanced multi-label loss (Huang et al., EMNLP 2021, section 3).

    For logit ``z`` of a label seen in ``n`` of ``N_train`` training samples::

        v = kappa * log(N_train / n - 1)
        t = z - v  (target 1)          t = -lam * (z - v)  (target 0)
        p = sigmoid(t)
        loss = factor * s * w * (1 - p)**gamma * -log(p)      s = 1 (target 1), 1 / lam (target 0)

    Args:
        gamma: focusing parameter, >= 0. Where ``gamma_negative`` is given, ``gamma`` is that of the positives alone.
        gamma_negative: focusing parameter of the negatives, >= 0; None takes ``gamma``.
        probability_margin: shift ``m`` in [0, 1) of the negatives' probability, ``1 - p -> max(1 - p - m, 0)``
            (Ridnik et al., ICCV 2021, equation 5).
        weighting: the formula of the weight ``w``. ``"none"``: 1. ``"class_balanced"``:
            ``(1 - beta_cb) / (1 - beta_cb**n)``. ``"rebalanced"``: ``alpha + sigmoid(beta * (r - mu))``, where ``r`` is
            the share of the label's ``1/n`` in the sum over the sample's labels. ``"inverse_frequency"`` and
            ``"sqrt_inverse_frequency"``: ``1/n`` and ``n**-0.5``, scaled to mean 1 over the labels.
        pooling: ``"label"`` weighs every label by its own count. The others give a whole sample one weight:
            ``"mean_count"`` that of its labels' mean count, ``"mean_weight"`` its labels' mean weight, and ``"rarest"``
            that of its rarest label. A sample without labels is weighed as if it had a label that all samples carry.
        beta_cb: class-balanced beta, in [0, 1).
        alpha, beta: floor (>= 0) and slope (> 0) of the rebalanced weight.
        mu: midpoint of the rebalanced weight. It belongs to a corpus: None takes that of the training targets,
            ``LabelStatistics.mu``.
        kappa: scale of the negative-tolerant bias ``v``; with 0 there is none.
        lam: the paper's lambda > 0, slope of the negatives' margin.
        positive_factor, negative_factor: factors > 0 of the positives' and the negatives' loss.

    Raises:
        TypeError, ValueError: naming the setting, what was expected and what came.
    """

    gamma: float = 0.0
    gamma_negative: float | None = None
    probability_margin: float = 0.0
    weighting: Weighting = "none"
    pooling: Pooling = "label"
    beta_cb: float = 0.9
    alpha: float = 0.1
    beta: float = 10.0
    mu: float | None = None
    kappa: float = 0.0
    lam: float = 1.0
    positive_factor: float = 1.0
    negative_factor: float = 1.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in ("weighting", "pooling") or (field.name in ("gamma_negative", "mu") and value is None):
                continue
            object.__setattr__(self, field.name, as_number(field.name, value))
        check_choice("weighting", self.weighting, WEIGHTINGS)
        check_choice("pooling", self.pooling, POOLINGS)
        for name in ("gamma", "gamma_negative", "alpha"):
            if (getattr(self, name) or 0.0) < 0:
                raise ValueError(f"{name}: expected a number >= 0, got {getattr(self, name)}")
        for name in ("beta", "lam", "positive_factor", "negative_factor"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a number > 0, got {getattr(self, name)}")
        for name in ("beta_cb", "probability_margin"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a number in [0, 1), got {getattr(self, name)}")
        if self.pooling != "label" and self.weighting in ("none", "rebalanced"):
            raise ValueError(
                f"pooling: expected 'label' with weighting {self.weighting!r}, which has no per-label weight to pool, "
                f"got {self.pooling!r}"
            )

    @property
    def gammas(self) -> tuple[float, float]:
        """The focusing parameters of the positives and of the negatives."""
        return self.gamma, self.gamma if self.gamma_negative is None else self.gamma_negative

    @property
    def needs_statistics(self) -> bool:
        """Whether the loss depends on label counts."""
        return self.weighting != "none" or self.kappa != 0

    @property
    def needs_mu(self) -> bool:
        """Whether the loss takes its ``mu`` from the statistics."""
        return self.mu is None and self.weighting == "rebalanced"

    def replace(self, **settings: Any) -> LossSpec:
        """A copy with some settings changed.

        Raises:
            TypeError, ValueError: for an unknown setting, and as the constructor does.
        """
        unknown = sorted(set(settings) - {field.name for field in dataclasses.fields(self)})
        if unknown:
            known = ", ".join(field.name for field in dataclasses.fields(self))
            raise TypeError(f"LossSpec has no setting {unknown[0]!r}; expected one of {known}")
        return dataclasses.replace(self, **settings)

    @classmethod
    def preset(cls, name: str, *, corpus: Corpus | None = None, convention: Convention = "paper") -> LossSpec:
        """The loss that the paper calls ``name``, or asymmetric loss.

        Args:
            name: ``"BCE"``, ``"FL"``, ``"CB"``, ``"R-FL"``, ``"NTR-FL"``, ``"DB-0FL"``, ``"CB-NTR"`` or ``"DB"`` (Huang
                et al., EMNLP 2021, Table 2); or ``"ASL"``, asymmetric loss with gamma 1 and 4 and margin 0.05 (Ridnik
                et al., ICCV 2021). Corpus and convention do not change ASL; its authors reduce by the sum.
            corpus: None for a corpus of one's own, whose mu comes from its training targets; ``"reuters"`` and
                ``"pubmed"`` for the paper's mu, 0.9 and 0.05.
            convention: ``"paper"`` for the published equations; ``"authors"`` for the constant factors that the
                published experiments ran with, on which their learning rates depend. For CB and NTR-FL they differ
                between the paper's corpora, so ``corpus`` must be given.

        Raises:
            ValueError: for an unknown name, corpus or convention, and for factors that need a corpus without one.
        """
        check_choice("name", name, PRESETS)
        if corpus is not None:
            check_choice("corpus", corpus, CORPORA)
        check_choice("convention", convention, CONVENTIONS)
        if name == "ASL":
            return cls(gamma=1.0, gamma_negative=4.0, probability_margin=0.05)
        weighting: Weighting = "none"
        if name in ("CB", "CB-NTR"):
            weighting = "class_balanced"
        elif name in ("R-FL", "DB-0FL", "DB"):
            weighting = "rebalanced"
        negative_tolerant = name in ("NTR-FL", "DB-0FL", "CB-NTR", "DB")
        positive, negative = (1.0, 1.0) if convention == "paper" else _authors_factors(name, corpus)
        return cls(
            gamma=0.0 if name in ("BCE", "DB-0FL") else 2.0,
            weighting=weighting,
            mu=PAPER_MU[corpus] if corpus is not None and weighting == "rebalanced" else None,
            kappa=0.05 if negative_tolerant else 0.0,
            lam=2.0 if negative_tolerant else 1.0,
            positive_factor=positive,
            negative_factor=negative,
        )


def _authors_factors(name: str, corpus: str | None) -> tuple[float, float]:
    """The factors by which the published experiments multiply the paper's loss of positives and of negatives."""
    if corpus is None and name in ("CB", "NTR-FL"):
        raise ValueError(
            f"corpus: expected 'reuters' or 'pubmed' with convention 'authors', whose factors of {name} differ between "
            "them; got None"
        )
    reuters = corpus == "reuters"
    if name == "BCE":
        return 1.0, 1.0
    if name == "CB":
        return (5.0, 5.0) if reuters else (2.5, 2.5)
    if name == "CB-NTR":
        return 5.0, 5.0
    if name == "NTR-FL":
        # The experiments left out the factor 1/lambda of the negatives, and lambda is 2: so theirs is twice as large.
        return (0.5, 1.0) if reuters else (0.25, 0.5)
    return 0.5, 0.5


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        expected = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {expected}; got {value!r}")
