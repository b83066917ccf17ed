"""Reuters-21578 (ApteMod, 90 labels) from NLTK."""

import hashlib
import io
import socket
import zipfile
from collections.abc import Sequence

from sklearn.model_selection import train_test_split

from corpora.corpus import Corpus, Split
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
        try:
            return _read()
        except LookupError:
            _download()
        return _read()
    except ImportError as error:
        raise ReutersUnavailableError(f"nltk cannot be imported ({error})") from error
    except (LookupError, OSError, zipfile.BadZipFile) as error:
        raise ReutersUnavailableError(f"NLTK's copy cannot be read: {error}") from error


def make_reuters(
    name: str, label_names: Sequence[str], train: Documents, test: Documents, size: int, notice: str | None = None
) -> Corpus:
    """Corpus with ``size`` of the training documents, texts and label ids, held out by the published split."""
    texts, held_out, ids, held_out_ids = train_test_split(*train, test_size=size, random_state=VALIDATION_SEED)
    documents = ((texts, ids), (held_out, held_out_ids), test)
    hashed = hashlib.sha256("\n".join(label_names).encode())
    for text, labels in (row for part in documents for row in zip(*part, strict=True)):
        hashed.update(f"{list(labels)}{text}".encode("utf-8", "surrogatepass"))
    splits = [Split(texts, SparseTargets.from_lists(ids, len(label_names))) for texts, ids in documents]
    return Corpus(
        name,
        label_names,
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        fingerprint=hashed.hexdigest()[:16],
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
    found, expected = (len(train[0]), len(test[0]), len(names)), (NUM_TRAIN, NUM_TEST, NUM_LABELS)
    if found != expected:
        numbers = "{} training and {} test documents and {} labels"
        raise ReutersUnavailableError(f"NLTK's copy has {numbers.format(*found)}, expected {numbers.format(*expected)}")
    return make_reuters("Reuters-21578", names, train, test, NUM_VALIDATION)


def _download() -> None:
    import nltk

    timeout = socket.getdefaulttimeout()
    # NLTK has no timeout of its own, and a blocked network may never answer.
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    reason = ""
    try:
        done = nltk.download("reuters", quiet=True, print_error_to=io.StringIO())
    except (OSError, ValueError) as error:
        done, reason = False, f": {error}"
    finally:
        socket.setdefaulttimeout(timeout)
    if not done:
        raise ReutersUnavailableError(f"not installed, and the download failed{reason}")
