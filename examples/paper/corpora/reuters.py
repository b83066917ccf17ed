"""Reuters-21578 (ApteMod, 90 labels) from NLTK."""

from __future__ import annotations

import io
import socket
import zipfile
from collections.abc import Sequence

from sklearn.model_selection import train_test_split

from corpora.corpus import Corpus, Split, hash_documents
from fused_balanced_loss import SparseTargets

NUM_TRAIN, NUM_VALIDATION, NUM_TEST, NUM_LABELS = 7769, 1000, 3019, 90
VALIDATION_SEED = 123
# Huang et al., EMNLP 2021, section 4.1 and Table 3.
HEAD, TAIL = 35, 8
INSTANCE_GROUPS = {"single": (1, 1), "multi": (2, None)}
DOWNLOAD_TIMEOUT_SECONDS = 10.0

Documents = tuple[Sequence[str], Sequence[Sequence[int]]]


class ReutersUnavailableError(Exception):
    """Reuters is neither installed nor to be had."""


def load_reuters() -> Corpus:
    """Reuters as NLTK finds it; downloaded once where it is missing.

    Raises:
        ReutersUnavailableError: saying why.
    """
    try:
        return _read()
    except ImportError as error:
        raise ReutersUnavailableError(f"nltk cannot be imported ({error})") from error
    except LookupError:
        _download()
    except (OSError, zipfile.BadZipFile) as error:
        raise ReutersUnavailableError(f"NLTK's copy cannot be read: {error}") from error
    try:
        return _read()
    except (LookupError, OSError, zipfile.BadZipFile) as error:
        raise ReutersUnavailableError("the downloaded copy cannot be read") from error


def make_reuters(
    name: str, label_names: Sequence[str], train: Documents, test: Documents, size: int, notice: str | None = None
) -> Corpus:
    """Corpus with ``size`` of the training documents, texts and label ids, held out by the published split."""
    num_labels = len(label_names)
    parts = train_test_split(*train, test_size=size, random_state=VALIDATION_SEED)
    documents = ((parts[0], parts[2]), (parts[1], parts[3]), test)
    train_part, validation_part, test_part = (
        Split(texts, SparseTargets.from_lists(ids, num_labels)) for texts, ids in documents
    )
    return Corpus(
        name,
        label_names,
        train_part,
        validation_part,
        test_part,
        fingerprint=hash_documents(label_names, (row for part in documents for row in zip(*part, strict=True))),
        head=HEAD,
        tail=TAIL,
        instance_groups=INSTANCE_GROUPS,
        paper="reuters",
        notice=notice,
    )


def _read() -> Corpus:
    from nltk.corpus import reuters

    names = sorted(reuters.categories())
    label_of = {name: label for label, name in enumerate(names)}

    def documents(prefix: str) -> Documents:
        files = [file for file in reuters.fileids() if file.startswith(prefix)]
        ids = [sorted(label_of[name] for name in reuters.categories(file)) for file in files]
        return [reuters.raw(file) for file in files], ids

    train, test = documents("training/"), documents("test/")
    if (len(train[0]), len(test[0]), len(names)) != (NUM_TRAIN, NUM_TEST, NUM_LABELS):
        raise ReutersUnavailableError(
            f"NLTK's copy has {len(train[0])} training and {len(test[0])} test documents and {len(names)} labels, "
            f"expected {NUM_TRAIN}, {NUM_TEST} and {NUM_LABELS}"
        )
    return make_reuters("Reuters-21578", names, train, test, NUM_VALIDATION)


def _download() -> None:
    import nltk

    messages = io.StringIO()
    timeout = socket.getdefaulttimeout()
    # NLTK has no timeout of its own, and a blocked network may never answer.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        done = nltk.download("reuters", quiet=True, print_error_to=messages)
    except (OSError, ValueError) as error:
        raise ReutersUnavailableError(f"not installed, and the download failed: {error}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    if not done:
        raise ReutersUnavailableError("not installed, and the download failed")
