"""The settings of each loss, against the paper's tables."""

import copy
import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch

from fused_balanced_loss import LabelStatistics, LossSpec, balanced_loss

# name: (gamma, weighting, negative-tolerant)
PAPER = {
    "BCE": (0, "none", False),
    "FL": (2, "none", False),
    "CB": (2, "class_balanced", False),
    "R-FL": (2, "rebalanced", False),
    "NTR-FL": (2, "none", True),
    "DB-0FL": (0, "rebalanced", True),
    "CB-NTR": (2, "class_balanced", True),
    "DB": (2, "rebalanced", True),
}
# name: corpus: (positives, negatives)
AUTHORS = {
    "BCE": {"reuters": (1, 1), "pubmed": (1, 1)},
    "FL": {"reuters": (0.5, 0.5), "pubmed": (0.5, 0.5)},
    "CB": {"reuters": (5, 5), "pubmed": (2.5, 2.5)},
    "R-FL": {"reuters": (0.5, 0.5), "pubmed": (0.5, 0.5)},
    "NTR-FL": {"reuters": (0.5, 1), "pubmed": (0.25, 0.5)},
    "DB-0FL": {"reuters": (0.5, 0.5), "pubmed": (0.5, 0.5)},
    "CB-NTR": {"reuters": (5, 5), "pubmed": (5, 5)},
    "DB": {"reuters": (0.5, 0.5), "pubmed": (0.5, 0.5)},
}
MU = {"reuters": 0.9, "pubmed": 0.05}
OPTIONAL = ("gamma_negative", "mu")
NUMBERS = [field.name for field in dataclasses.fields(LossSpec) if field.name not in ("weighting", "pooling")]


@pytest.mark.parametrize("convention", ["paper", "authors"])
@pytest.mark.parametrize("corpus", ["reuters", "pubmed"])
@pytest.mark.parametrize("name", PAPER)
def test_presets_have_the_settings_of_the_tables(name, corpus, convention):
    spec = LossSpec.preset(name, corpus=corpus, convention=convention)
    gamma, weighting, negative_tolerant = PAPER[name]
    assert (spec.gamma, spec.gammas, spec.weighting, spec.pooling) == (gamma, (gamma, gamma), weighting, "label")
    assert (spec.kappa, spec.lam) == ((0.05, 2) if negative_tolerant else (0, 1))
    assert spec.probability_margin == 0
    assert (spec.positive_factor, spec.negative_factor) == ((1, 1) if convention == "paper" else AUTHORS[name][corpus])
    assert spec.needs_statistics == (weighting != "none" or negative_tolerant)
    if weighting == "class_balanced":
        assert spec.beta_cb == 0.9
    if weighting == "rebalanced":
        assert (spec.alpha, spec.beta, spec.mu) == (0.1, 10, MU[corpus])


def test_preset_without_corpus_has_no_mu_and_the_papers_convention():
    for name in PAPER:
        assert LossSpec.preset(name) == LossSpec.preset(name, corpus="reuters", convention="paper").replace(mu=None)
        assert LossSpec.preset(name).needs_mu == (PAPER[name][1] == "rebalanced")


def test_factors_that_differ_between_the_corpora_need_one():
    for name in ("CB", "NTR-FL"):
        with pytest.raises(ValueError, match=rf"^corpus: expected 'reuters' or 'pubmed' .* of {name} differ"):
            LossSpec.preset(name, convention="authors")
    for name in ("BCE", "FL", "R-FL", "DB-0FL", "CB-NTR", "DB"):
        authors = LossSpec.preset(name, convention="authors")
        assert authors == LossSpec.preset(name, corpus="pubmed", convention="authors").replace(mu=None)


@pytest.mark.parametrize("corpus", ["reuters", "pubmed"])
@pytest.mark.parametrize("convention", ["paper", "authors"])
def test_asymmetric_loss(corpus, convention):
    spec = LossSpec.preset("ASL", corpus=corpus, convention=convention)
    assert spec == LossSpec(gamma=1, gamma_negative=4, probability_margin=0.05)
    assert spec.gammas == (1, 4)
    assert not spec.needs_statistics


@pytest.mark.parametrize("corpus", ["reuters", "pubmed"])
@pytest.mark.parametrize("name", PAPER)
def test_the_conventions_differ_by_their_factors_alone(name, corpus):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    targets = torch.rand(5, 4, generator=generator) < 0.4
    statistics = LabelStatistics.from_counts([1, 30, 4, 70], 100)
    paper, authors = (
        balanced_loss(logits, targets, LossSpec.preset(name, corpus=corpus, convention=c), statistics, reduction="none")
        for c in ("paper", "authors")
    )
    positive, negative = AUTHORS[name][corpus]
    torch.testing.assert_close(authors, paper * torch.where(targets, positive, negative), rtol=1e-13, atol=0)


def test_a_plain_spec_is_binary_cross_entropy():
    assert LossSpec() == LossSpec.preset("BCE")
    assert not LossSpec().needs_statistics


def test_frozen_and_hashable():
    spec = LossSpec.preset("DB")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.gamma = 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        del spec.gamma
    same = LossSpec.preset("DB")
    assert spec == same
    assert hash(spec) == hash(same)
    specs = {LossSpec.preset(name, corpus="reuters", convention=c) for name in PAPER for c in ("paper", "authors")}
    assert len(specs) == 15
    assert spec == copy.deepcopy(spec) == pickle.loads(pickle.dumps(spec))


def test_integers_and_floats_make_the_same_spec():
    spec = LossSpec(gamma=2, lam=2)
    assert spec == LossSpec(gamma=2.0, lam=2.0)
    assert hash(spec) == hash(LossSpec(gamma=2.0, lam=2.0))
    assert repr(spec) == repr(LossSpec(gamma=2.0, lam=2.0))
    assert all(type(getattr(spec, name)) is float for name in NUMBERS if name not in OPTIONAL)


def test_replace():
    spec = LossSpec.preset("DB")
    changed = spec.replace(gamma=0, mu=0.05)
    assert (changed.gamma, changed.mu) == (0.0, 0.05)
    assert changed == LossSpec.preset("DB-0FL", corpus="pubmed")
    assert spec == LossSpec.preset("DB")
    assert spec.replace() == spec
    with pytest.raises(ValueError, match=r"lam: expected a number > 0, got 0"):
        spec.replace(lam=0)
    with pytest.raises(TypeError, match=r"no setting 'gama'; expected one of gamma, gamma_negative, .*lam"):
        spec.replace(gama=1)


def test_unknown_settings_are_named():
    with pytest.raises(TypeError, match="'gama'"):
        LossSpec(gama=1)


@pytest.mark.parametrize("gammas", [(2.0, None), (0.0, 3.0), (2.0, 0.0)])
def test_gammas(gammas):
    positive, negative = gammas
    expected = (positive, positive if negative is None else negative)
    assert LossSpec(gamma=positive, gamma_negative=negative).gammas == expected


@pytest.mark.parametrize(
    ("settings", "needs"),
    [
        ({}, False),
        ({"gamma": 2, "lam": 2}, False),
        ({"kappa": 0.05}, True),
        ({"kappa": -0.05}, True),
        ({"weighting": "inverse_frequency"}, True),
        ({"weighting": "sqrt_inverse_frequency", "pooling": "rarest"}, True),
    ],
)
def test_needs_statistics(settings, needs):
    assert LossSpec(**settings).needs_statistics is needs


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_must_be_finite(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected a finite number, got -?(nan|inf)"):
        LossSpec(**{name: value})


@pytest.mark.parametrize("value", [np.int64(2), np.uint8(2), np.float32(2), np.float64(2), np.float16(2)])
def test_numbers_of_numpy_become_floats(value):
    spec = LossSpec(gamma=value, lam=value)
    assert spec == LossSpec(gamma=2, lam=2)
    assert type(spec.gamma) is type(spec.lam) is float


@pytest.mark.parametrize("name", NUMBERS)
def test_integers_beyond_float_are_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: expected a finite number, got 1000"):
        LossSpec(**{name: 10**400})


@pytest.mark.parametrize("value", ["2", True, np.bool_(True), [2.0], np.zeros(2), torch.tensor(2.0), 1j])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_must_be_numbers(name, value):
    with pytest.raises(TypeError, match=rf"^{name}: expected a number, got {type(value).__name__}"):
        LossSpec(**{name: value})


@pytest.mark.parametrize("name", [name for name in NUMBERS if name not in OPTIONAL])
def test_none_is_no_number(name):
    with pytest.raises(TypeError, match=rf"^{name}: expected a number, got NoneType"):
        LossSpec(**{name: None})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("gamma", -1, "a number >= 0"),
        ("gamma_negative", -0.5, "a number >= 0"),
        ("alpha", -0.1, "a number >= 0"),
        ("beta", 0, "a number > 0"),
        ("beta", -10, "a number > 0"),
        ("lam", 0, "a number > 0"),
        ("lam", -2, "a number > 0"),
        ("positive_factor", 0, "a number > 0"),
        ("positive_factor", -1, "a number > 0"),
        ("negative_factor", 0, "a number > 0"),
        ("negative_factor", -1, "a number > 0"),
        ("beta_cb", 1, r"a number in \[0, 1\)"),
        ("beta_cb", -0.1, r"a number in \[0, 1\)"),
        ("probability_margin", 1, r"a number in \[0, 1\)"),
        ("probability_margin", -0.05, r"a number in \[0, 1\)"),
    ],
)
def test_numbers_must_be_in_their_range(name, value, expected):
    with pytest.raises(ValueError, match=rf"^{name}: expected {expected}, got {float(value)}"):
        LossSpec(**{name: value})


@pytest.mark.parametrize("settings", [{"kappa": -1}, {"mu": -3}, {"alpha": 0}, {"beta_cb": 0}, {"gamma": 0.3}])
def test_settings_at_the_edge_of_their_range(settings):
    LossSpec(**settings)


@pytest.mark.parametrize("value", ["balanced", "", None, 3, ["none"]])
@pytest.mark.parametrize("name", ["weighting", "pooling"])
def test_unknown_choices_are_named(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected one of '\w+', .*; got "):
        LossSpec(**{name: value})


@pytest.mark.parametrize("pooling", ["mean_count", "mean_weight", "rarest"])
@pytest.mark.parametrize("weighting", ["none", "rebalanced"])
def test_pooling_needs_a_weight_to_pool(weighting, pooling):
    with pytest.raises(ValueError, match=rf"^pooling: expected 'label' with weighting '{weighting}'.*got '{pooling}'"):
        LossSpec(weighting=weighting, pooling=pooling)
    for other in ("class_balanced", "inverse_frequency", "sqrt_inverse_frequency"):
        assert LossSpec(weighting=other, pooling=pooling).pooling == pooling


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "db"}, r"^name: expected one of 'BCE', .*'DB'.*; got 'db'"),
        ({"name": None}, r"^name: expected one of .*; got None"),
        ({"name": "DB", "corpus": "Reuters"}, r"^corpus: expected one of 'reuters', 'pubmed'; got 'Reuters'"),
        ({"name": "DB", "convention": "timm"}, r"^convention: expected one of 'paper', 'authors'; got 'timm'"),
    ],
)
def test_unknown_presets_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossSpec.preset(**arguments)
