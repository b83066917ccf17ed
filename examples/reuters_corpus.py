"""Reuters-21578 (ApteMod, 90 labels) from NLTK."""

from __future__ import annotations

import io
import socket
import zipfile

from corpus import Corpus, Split, hold_out_validation

NUM_TRAIN, NUM_VALIDATION, NUM_TEST, NUM_LABELS = 7769, 1000, 3019, 90
DOWNLOAD_TIMEOUT_SECONDS = 10.0


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
        raise ReutersUnavailableError("the package nltk is not installed") from error
    except LookupError:
        _download()
    except (OSError, zipfile.BadZipFile) as error:
        raise ReutersUnavailableError(f"NLTK's copy cannot be read: {error}") from error
    try:
        return _read()
    except (LookupError, OSError, zipfile.BadZipFile) as error:
        raise ReutersUnavailableError("the downloaded copy cannot be read") from error


def _read() -> Corpus:
    from nltk.corpus import reuters

    names = sorted(reuters.categories())
    label_of = {name: label for label, name in enumerate(names)}

    def split(prefix: str) -> Split:
        files = [file for file in reuters.fileids() if file.startswith(prefix)]
        ids = [sorted(label_of[name] for name in reuters.categories(file)) for file in files]
        return Split([reuters.raw(file) for file in files], ids)

    train, test = split("training/"), split("test/")
    if (len(train), len(test), len(names)) != (NUM_TRAIN, NUM_TEST, NUM_LABELS):
        raise ReutersUnavailableError(
            f"NLTK's copy has {len(train)} training and {len(test)} test documents and {len(names)} labels, "
            f"expected {NUM_TRAIN}, {NUM_TEST} and {NUM_LABELS}"
        )
    rest, validation = hold_out_validation(train.texts, train.label_ids, NUM_VALIDATION)
    return Corpus("Reuters-21578", names, rest, validation, test)


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
