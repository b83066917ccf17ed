"""A multi-label classifier for scikit-learn, trained with the balanced losses::

classifier = make_pipeline(TfidfVectorizer(), BalancedClassifier())
classifier.fit(texts, indicators).predict(more_texts)
"""

try:
    from .classifier import BalancedClassifier
except ImportError as error:
    raise ImportError(
        f"fused_balanced_loss.integrations.sklearn needs scikit-learn 1.6 or newer: pip install scikit-learn ({error})"
    ) from error

__all__ = ["BalancedClassifier"]
