"""BalancedClassifier as a scikit-learn estimator: its conventions, its forms of features and targets, its results."""

import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_classifier_multioutput, parametrize_with_checks

from fused_balanced_loss import LabelStatistics, LossSpec
from fused_balanced_loss.integrations.sklearn import BalancedClassifier

ROOT = Path(__file__).parents[2]
ORDER = (
    "training goes in mini-batches of random order and leaves out samples for validation, so repeated samples differ"
)


@pytest.mark.slow
@parametrize_with_checks(
    [
        BalancedClassifier(max_iter=10, learning_rate=0.01),
        BalancedClassifier(threshold=0.5, hidden_layer_size=16, max_iter=5, learning_rate=0.01),
    ],
    expected_failed_checks=lambda _: {
        "check_sample_weight_equivalence_on_dense_data": ORDER,
        "check_sample_weight_equivalence_on_sparse_data": ORDER,
    },
)
def test_conventions(estimator, check):
    check(estimator)


def test_decisions_and_probabilities_agree_with_the_labels():
    check_classifier_multioutput("BalancedClassifier", BalancedClassifier(threshold=0.5))


@pytest.fixture(scope="module")
def data():
    features, targets = make_multilabel_classification(
        300, n_features=20, n_classes=6, n_labels=2, random_state=0, allow_unlabeled=True
    )
    return StandardScaler().fit_transform(features), targets


def small(**parameters):
    return BalancedClassifier(random_state=0, max_iter=8, learning_rate=0.02, **parameters)


def ids(targets):
    return [np.flatnonzero(row).tolist() for row in targets]


Y_FORMS = {
    "csr": sparse.csr_matrix,
    "csr_array": sparse.csr_array,
    "lists": ids,
    "sets": lambda targets: [set(row) for row in ids(targets)],
    "series": lambda targets: pd.Series(ids(targets)),
    "DataFrame": pd.DataFrame,
    "bool": lambda targets: targets.astype(bool),
    "float": lambda targets: targets.astype(float),
}


@pytest.mark.parametrize("form", Y_FORMS)
def test_targets_in_all_forms(data, form):
    features, targets = data
    expected = small().fit(features, targets)
    fitted = small().fit(features, Y_FORMS[form](targets))
    np.testing.assert_array_equal(fitted.predict_proba(features), expected.predict_proba(features))
    np.testing.assert_array_equal(fitted.classes_, np.arange(6))
    labels = fitted.predict(features)
    is_sparse = form in ("csr", "csr_array", "lists", "sets", "series")
    assert sparse.issparse(labels) == is_sparse
    np.testing.assert_array_equal(labels.toarray() if is_sparse else labels, expected.predict(features))


@pytest.mark.parametrize("hidden", [None, 8])
def test_sparse_features_train_as_dense_ones(data, hidden):
    """SGD has no state that rests, so that the weights are the same but for rounding; in both ways to predict."""
    features, targets = data
    features = np.where(np.abs(features) > 1, features, 0)
    settings = {"optimizer": "sgd", "hidden_layer_size": hidden}
    dense = small(**settings).fit(features, targets)
    csr = small(**settings).fit(sparse.csr_matrix(features), targets)
    if hidden is None:
        np.testing.assert_allclose(csr.coef_, dense.coef_, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(csr.intercept_, dense.intercept_, rtol=1e-3, atol=1e-6)
        expected = features @ dense.coef_.T + dense.intercept_
        shift = np.log(dense.threshold_ / (1 - dense.threshold_))
        np.testing.assert_allclose(dense.decision_function(features), expected - shift, rtol=1e-4, atol=1e-5)
    else:
        # The two draw other first weights, as they lie in another order.
        assert not hasattr(dense, "coef_")
    for one in (dense, csr):
        for form in (sparse.csr_array, sparse.csc_matrix):
            np.testing.assert_allclose(
                one.predict_proba(form(features)), one.predict_proba(features), rtol=1e-5, atol=1e-7
            )


def test_adamw_of_sparse_features_is_that_of_dense_ones_where_all_occur(data):
    features, targets = data
    for state in ("float32", "bfloat16"):
        dense = small(optimizer_state=state).fit(features, targets)
        csr = small(optimizer_state=state).fit(sparse.csr_matrix(features), targets)
        np.testing.assert_allclose(csr.coef_, dense.coef_, atol=2e-3 if state == "float32" else 2e-2)


def test_features_are_never_dense_as_a_whole(monkeypatch):
    """With a million features a dense row is 4 MB: what is made dense at once is one batch of no rows at all."""
    rows, columns = 400, 1_000_000
    features = sparse.random_array((rows, columns), density=2e-5, format="csr", rng=np.random.default_rng(0))
    targets = [[k % 3] for k in range(rows)]

    def refuse(self, *arguments, **options):
        raise AssertionError(f"{self.shape} was made dense")

    for kind in (sparse.csr_array, sparse.csr_matrix):
        monkeypatch.setattr(kind, "toarray", refuse)
    labels = small(batch_size=64).fit(features, targets).predict(features)
    assert labels.shape == (rows, 3) and sparse.issparse(labels)


def assert_same_counts(classifier, targets):
    expected = LabelStatistics.from_targets(targets)
    assert torch.equal(classifier.statistics_.counts, expected.counts)
    assert classifier.statistics_.num_samples == expected.num_samples


def test_the_losses_statistics_are_those_of_the_training_part(data):
    features, targets = data
    plain = small(early_stopping=False, threshold=0.5).fit(features, targets)
    statistics = LabelStatistics.from_targets(targets)
    assert_same_counts(plain, targets)
    assert plain.spec_ == LossSpec.preset("DB").replace(mu=statistics.suggest_mu(targets))
    assert small().fit(features, targets).statistics_.num_samples == 270
    given = LossSpec.preset("DB").replace(mu=0.2)
    assert small(loss=given).fit(features, targets).spec_ == given
    assert small(loss="ASL").fit(features, targets).spec_ == LossSpec.preset("ASL")


def test_the_threshold_is_chosen_or_given(data):
    features, targets = data
    chosen, given = small(loss="BCE").fit(features, targets), small(loss="BCE", threshold=0.3).fit(features, targets)
    assert given.threshold_ == 0.3 and 0 < chosen.threshold_ < 1
    for one in (chosen, given):
        labels = one.predict(features)
        np.testing.assert_array_equal(labels, one.decision_function(features) > 0)
        apart = np.abs(one.predict_proba(features) - one.threshold_) > 1e-6
        assert (labels == (one.predict_proba(features) > one.threshold_))[apart].all()
    given.threshold_ = 1e-6
    assert given.predict(features).all()


def test_early_stopping_keeps_the_best_weights(data):
    features, targets = data
    long = BalancedClassifier(random_state=0, learning_rate=0.1, max_iter=60, n_iter_no_change=3).fit(features, targets)
    scores = long.validation_scores_
    best = max(range(len(scores)), key=lambda epoch: (scores[epoch], epoch))
    assert long.n_iter_ == len(scores) == len(long.loss_curve_) < 60
    short = BalancedClassifier(random_state=0, learning_rate=0.1, max_iter=best + 1, n_iter_no_change=60)
    short.fit(features, targets)
    np.testing.assert_array_equal(short.coef_, long.coef_)
    assert short.threshold_ == long.threshold_


def test_same_seed_same_result_and_the_callers_random_numbers_are_left_alone(data):
    features, targets = data
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    one = small(hidden_layer_size=8).fit(features, targets)
    assert (torch.rand(1), np.random.rand()) == expected
    np.testing.assert_array_equal(
        small(hidden_layer_size=8).fit(features, targets).predict_proba(features), one.predict_proba(features)
    )
    other = BalancedClassifier(random_state=1, max_iter=8).fit(features, targets)
    assert (other.predict_proba(features) != one.predict_proba(features)).any()


@pytest.mark.slow
def test_it_learns_better_than_the_most_frequent_labels(data):
    features, targets = data
    constant = np.tile(targets.mean(0) > 0.3, (len(targets), 1))
    floor = f1_score(targets, constant, average="micro")
    for settings in ({}, {"hidden_layer_size": 16}, {"optimizer": "sgd", "learning_rate": 1.0}, {"dtype": "bfloat16"}):
        fitted = BalancedClassifier(random_state=0, **{"learning_rate": 0.02} | settings).fit(features, targets)
        assert f1_score(targets, fitted.predict(features), average="micro") > floor + 0.03, settings


def test_partial_fit_counts_over_the_calls(data):
    features, targets = data
    classifier = small()
    for start in range(0, 300, 100):
        classifier.partial_fit(features[start : start + 100], targets[start : start + 100])
    assert_same_counts(classifier, targets)
    # Each call's mu is of the counts so far.
    assert classifier.spec_.mu == pytest.approx(classifier.statistics_.suggest_mu(targets), rel=0.05)
    assert classifier.n_iter_ == len(classifier.loss_curve_) == 3 and classifier.threshold_ == 0.5
    before = classifier.predict_proba(features)
    for _ in range(5):
        classifier.partial_fit(features, targets)
    assert classifier.loss_curve_[-1] < classifier.loss_curve_[0]
    assert (classifier.predict_proba(features) != before).any()


def test_partial_fit_of_label_ids_and_classes():
    features = np.eye(4)
    listed = small().partial_fit(features, [[0], [2], [], [1, 2]], classes=range(5))
    assert listed.predict(features).shape == (4, 5)
    listed.partial_fit(features, sparse.csr_array((4, 5)))
    single = small().partial_fit(features, ["a", "b", "a", "b"], classes=["c", "b", "a"])
    assert set(single.predict(features)) <= {"a", "b", "c"}
    assert single.predict_proba(features).sum(1) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"^classes: expected all classes"):
        small().partial_fit(features, [[0], [2], [], [1, 2]])
    with pytest.raises(ValueError, match=r"^y: expected 5 labels, as in classes, got 4"):
        listed.partial_fit(features, np.eye(4, dtype=int))
    with pytest.raises(ValueError, match=r"^y: expected the classes .*, got .*'d'"):
        single.partial_fit(features, ["a", "b", "d", "b"])
    with pytest.raises(ValueError, match=r"^y: expected one class of each sample, as before"):
        single.partial_fit(features, np.eye(4, dtype=int))


def test_warm_start_goes_on(data):
    features, targets = data
    warm = small(warm_start=True, early_stopping=False, threshold=0.5).fit(features, targets)
    first = warm.loss_curve_
    warm.fit(features, targets)
    assert warm.loss_curve_[0] < first[0]
    with pytest.raises(ValueError, match=r"^y: expected 6 labels"):
        warm.fit(features, targets[:, :5])
    with pytest.raises(ValueError, match="features"):
        warm.fit(features[:, :5], targets)


def test_sample_weights_scale_the_losses_and_zero_leaves_out(data):
    features, targets = data
    weight = np.r_[np.zeros(100), np.ones(200)]
    for settings in ({}, {"hidden_layer_size": 4}):
        settings |= {"early_stopping": False, "threshold": 0.5}
        weighed = small(**settings).fit(features, targets, sample_weight=weight)
        assert_same_counts(weighed, targets[100:])
        for form in (np.asarray, sparse.csr_matrix):
            plain = small(optimizer="sgd", **settings).fit(form(features), targets)
            # SGD with half the rate is SGD with half the weights.
            half = small(optimizer="sgd", **settings).set_params(learning_rate=0.01)
            half.fit(form(features), targets, sample_weight=np.full(300, 2.0))
            np.testing.assert_allclose(half.predict_proba(features), plain.predict_proba(features), rtol=1e-4)
    partial = small().partial_fit(features, targets, sample_weight=weight)
    assert partial.statistics_.num_samples == 200


@pytest.mark.slow
def test_pipeline_grid_search_and_cross_validation(data):
    features, targets = data
    pipeline = make_pipeline(StandardScaler(), small())
    grid = {"balancedclassifier__loss": ["DB", "BCE"], "balancedclassifier__learning_rate": [0.01, 0.05]}
    search = GridSearchCV(pipeline, grid, scoring="f1_micro", cv=2, n_jobs=2).fit(features, targets)
    assert search.best_score_ > 0.3 and search.best_estimator_[-1].loss in ("DB", "BCE")
    assert cross_val_score(small(), sparse.csr_array(features), targets, scoring="f1_macro", cv=2).min() > 0
    texts = ["wheat and corn", "crude oil", "gold and oil", "corn"] * 10
    names = [["grain"], ["oil"], ["gold", "oil"], ["grain"]] * 10
    from sklearn.preprocessing import MultiLabelBinarizer

    binarizer = MultiLabelBinarizer(sparse_output=True)
    model = make_pipeline(TfidfVectorizer(), BalancedClassifier(random_state=0, learning_rate=0.1))
    model.fit(texts, binarizer.fit_transform(names))
    assert binarizer.inverse_transform(model.predict(["gold, oil", "corn"])) == [("gold", "oil"), ("grain",)]


@pytest.mark.parametrize("hidden", [None, 8])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_pickles_and_joblib_files_predict_the_same_and_go_on(data, tmp_path, hidden, form):
    features, targets = data
    fitted = small(hidden_layer_size=hidden, warm_start=True).fit(form(features), targets)
    joblib.dump(fitted, tmp_path / "model")
    copies = [pickle.loads(pickle.dumps(fitted)), joblib.load(tmp_path / "model")]
    expected = fitted.predict_proba(features)
    fitted.partial_fit(form(features), targets)
    for one in copies:
        np.testing.assert_array_equal(one.predict_proba(features), expected)
        one.partial_fit(form(features), targets)
        np.testing.assert_array_equal(one.predict_proba(features), fitted.predict_proba(features))
    assert not hasattr(clone(fitted), "classes_")


def test_a_fitted_classifier_holds_its_weights_alone(data):
    features, targets = data
    sizes = {}
    for settings in ({}, {"warm_start": True}):
        stored = io.BytesIO()
        wide = sparse.csr_matrix(np.hstack([features] * 100))
        pickle.dump(small(optimizer_state="float32", **settings).fit(wide, targets), stored)
        sizes[bool(settings)] = stored.tell() / (4 * 6 * 2000)
    assert sizes[False] < 1.5 and sizes[True] > 3, "of the weights' size: without and with AdamW's two moments"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"loss": "MSE"}, "^loss: expected a LossSpec or one of BCE"),
        ({"loss": None}, "^loss: expected"),
        ({"hidden_layer_size": 0}, "^hidden_layer_size: expected an integer of at least 1 or None, got 0"),
        ({"hidden_layer_size": (8,)}, "^hidden_layer_size: "),
        ({"optimizer": "adam"}, "^optimizer: expected one of 'adamw', 'sgd', got 'adam'"),
        ({"optimizer_state": "float16"}, "^optimizer_state: "),
        ({"learning_rate": 0}, "^learning_rate: expected a number above 0, got 0"),
        ({"learning_rate": float("nan")}, "^learning_rate: "),
        ({"weight_decay": -1}, "^weight_decay: expected a number of at least 0"),
        ({"batch_size": 2.5}, "^batch_size: expected an integer of at least 1 or 'auto', got 2.5"),
        ({"batch_size": "all"}, "^batch_size: "),
        ({"max_iter": 0}, "^max_iter: "),
        ({"validation_fraction": 1.0}, "^validation_fraction: expected a number between 0 and 1"),
        ({"threshold": 0}, "^threshold: expected a number between 0 and 1 or 'validation', got 0"),
        ({"threshold": "best"}, "^threshold: "),
        ({"device": "abacus"}, "^device: "),
        ({"dtype": "float64"}, "^dtype: expected one of 'float32', 'bfloat16'"),
    ],
)
def test_parameters_are_checked_in_fit(data, parameters, message):
    features, targets = data
    for method in ("fit", "partial_fit"):
        with pytest.raises(ValueError, match=message):
            getattr(BalancedClassifier(**parameters), method)(features, targets)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.arange(12).reshape(4, 3), "^y: .*multiclass-multioutput"),
        (np.full((4, 3), 2), "^y: expected 0 and 1 for each label"),
        (np.full((4, 3), 0.5), "Unknown label type"),
        (sparse.csr_array(np.full((4, 3), 2)), "^y: expected 0 and 1 for each label"),
        ([["a"], ["b"], ["a", "b"], []], "^y: expected label ids.*MultiLabelBinarizer"),
        ([[0, 0], [1], [2], []], "^y: expected label ids.*got 0 twice in row 0"),
        ([[-1], [1], [2], []], "^y: expected label ids.*got -1 in row 0"),
        ([[0.5], [1], [2], []], "^y: expected label ids"),
        ([[0], [1], [2]], "^y: expected 4 samples, as in X, got 3"),
        ([[], [], [], []], "^y: expected at least one label"),
        ([1, 1, 1, 1], "1 class"),
        (None, "requires y to be passed"),
    ],
)
def test_bad_targets(targets, message):
    with pytest.raises(ValueError, match=message):
        BalancedClassifier().fit(np.eye(4), targets)


def test_bad_features_weights_and_order(data):
    features, targets = data
    with pytest.raises(NotFittedError):
        BalancedClassifier().predict(features)
    for broken in (features[0], np.where(features == features.max(), np.nan, features), features[:1]):
        with pytest.raises(ValueError):  # noqa: PT011  scikit-learn's messages
            BalancedClassifier().fit(broken, targets[: len(broken)])
    for weight in (-np.ones(300), np.ones(299), np.full(300, np.nan)):
        with pytest.raises(ValueError, match=r"weight|NaN"):
            BalancedClassifier().fit(features, targets, sample_weight=weight)
    with pytest.raises(ValueError, match=r"^learning_rate: expected one at which training converges"):
        BalancedClassifier(optimizer="sgd", learning_rate=1e38, max_iter=5).fit(1e10 * features, targets)
    fitted = small().fit(features, targets)
    before = fitted.predict(features)
    with pytest.raises(ValueError, match=r"^y: expected 300 samples"):
        fitted.fit(features, targets[:-1, :5])
    np.testing.assert_array_equal(fitted.predict(features), before)


def test_verbose_prints_an_epoch_a_line(data, capsys):
    fitted = small(verbose=True).fit(*data)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == fitted.n_iter_ and lines[0].startswith("epoch 1: loss ") and "validation score 0." in lines[0]


def run_python(code):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)


def test_scikit_learn_is_optional():
    done = run_python(
        "import sys, fused_balanced_loss as f; f.metrics\n"
        "assert not {'sklearn', 'scipy', 'transformers'} & set(sys.modules)\n"
        "sys.modules['sklearn'] = None\n"
        "try: f.integrations.sklearn\n"
        "except ImportError as error: print(error)\n"
    )
    assert done.returncode == 0, done.stderr
    assert "needs scikit-learn" in done.stdout and "pip install scikit-learn" in done.stdout


def test_submodules_are_attributes():
    done = run_python(
        "import sys, fused_balanced_loss as f\n"
        "assert 'fused_balanced_loss.metrics' not in sys.modules and 'metrics' in dir(f)\n"
        "f.metrics.ThresholdedF1, f.label_parallel, f.integrations.sklearn.BalancedClassifier\n"
        "assert 'fused_head' in dir(f.integrations)\n"
        "assert not hasattr(f, 'metric') and not hasattr(f.integrations, 'keras')\n"
    )
    assert done.returncode == 0, done.stderr


def test_label_ids_stay_label_ids():
    features, targets = np.eye(4), [[0, 1]] * 4
    classifier = small().partial_fit(features[:3], [[0], [1], [0, 1]], classes=range(2)).partial_fit(features, targets)
    assert classifier.statistics_.counts.tolist() == [6, 6]
    with pytest.raises(ValueError, match=r"^classes: expected the label ids 0 to 3"):
        small().partial_fit(features, np.eye(4), classes=list("abcd"))


@pytest.mark.parametrize("hidden", [None, 3])
def test_training_goes_on_with_the_rate_of_now(data, hidden):
    features, targets = data
    classifier = small(hidden_layer_size=hidden).set_params(learning_rate=np.float32(0.01))
    classifier.partial_fit(features, targets)
    before = classifier.predict_proba(features)
    classifier.set_params(learning_rate=1e-12).partial_fit(features[:1], targets[:1])
    np.testing.assert_allclose(classifier.predict_proba(features), before, atol=1e-6)


def test_thresholds_may_be_assigned(data):
    features, targets = data
    classifier = small().fit(features, targets)
    probabilities = classifier.predict_proba(features)
    for threshold in (0.0, 0.3, 1.0, np.linspace(0, 1, targets.shape[1])):
        classifier.threshold_ = threshold
        assert (classifier.predict(features) == (probabilities > threshold)).all()
        assert ((classifier.decision_function(features) > 0) == (probabilities > threshold)).all()
    classifier.threshold_ = 1.5
    with pytest.raises(ValueError, match=r"^threshold_: expected a number in \[0, 1\]"):
        classifier.predict(features)
