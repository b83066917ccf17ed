"""How often each label occurs in the training set, and what the losses derive from it."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import shutil
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .input_values import as_integer, as_number, as_tensor
from .spec import check_choice
from .targets import SparseTargets, as_sparse_targets


class FrequencyGroups(NamedTuple):
    """Boolean masks [C] that part the labels by training count."""

    head: Tensor
    medium: Tensor
    tail: Tensor


def class_balanced_weight(counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta**n) for float64 counts n of any shape.

    The denominator is computed by expm1, which keeps its digits where beta is near 1.
    """
    return (1 - beta) / -torch.expm1(counts * (math.log(beta) if beta else -math.inf))


def _checked_counts(counts: Tensor, num_samples: int) -> Tensor:
    if counts.dim() != 1 or counts.numel() == 0:
        raise ValueError(f"counts: expected one dimension [C] with C >= 1, got shape {list(counts.shape)}")
    if counts.dtype == torch.bool or counts.is_complex():
        raise TypeError(f"counts: expected integers, got {counts.dtype}")
    whole = counts.to(torch.int64)
    if counts.is_floating_point() and not torch.equal(whole.to(counts.dtype), counts):
        at = int((whole.to(counts.dtype) != counts).nonzero()[0])
        raise ValueError(f"counts: expected integers, got {counts[at].item()} for label {at}")
    wrong = ((whole < 0) | (whole > num_samples)).nonzero()
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"counts: expected integers in [0, num_samples = {num_samples}], got {int(whole[at])} for label {at}"
        )
    return whole.clone()


def _midpoint(targets: SparseTargets, inverse_frequency: Tensor) -> float:
    """The average of mean and median of r over the label occurrences, of which there is one at least."""
    inverse, rows = inverse_frequency[targets.col.cpu()], targets.rows.cpu()
    share = (inverse / torch.bincount(rows, inverse)[rows]).numpy()
    # The shares of a sample add up to 1. A sum of the shares would have other last bits on other processors, and
    # statistics of the same targets would differ.
    mean = int((targets.crow.diff() > 0).sum()) / len(share)
    return float((mean + np.median(share)) / 2)


class LabelStatistics:
    """Label counts of the *training* set, on the CPU; immutable.

    A label that no sample carries (n = 0), or that all carry (n = N_train), would have an infinite bias or weight, so
    the derived quantities take its count as 1 or N_train - 1. ``counts`` keeps the true count.

    Args:
        counts: whole numbers [C] in [0, num_samples]; a tensor, array or sequence.
        num_samples: number of training samples, at least 2.
        mu: the midpoint of the rebalanced weight, where it is known; :meth:`from_targets` computes it.
        degenerate: what happens where labels have the count 0 or num_samples: ``"warn"`` warns once and says how many
            do, ``"error"`` raises ValueError, ``"ignore"`` does nothing.

    Attributes:
        counts: int64 [C], the number of training samples that carry each label.
        num_samples: N_train, at least 2.
        cache: constants that the losses have derived, so that they are made once; copies begin without.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    # Objects that an earlier version has pickled have none.
    _mu: float | None = None

    def __init__(self, counts: Any, num_samples: int, *, mu: float | None = None, degenerate: str = "warn") -> None:
        check_choice("degenerate", degenerate, ("warn", "error", "ignore"))
        if mu is not None:
            mu = as_number("mu", mu)
        self.num_samples = as_integer("num_samples", num_samples)
        if self.num_samples < 2:
            raise ValueError(f"num_samples: expected at least 2, got {num_samples}")
        self.counts = _checked_counts(as_tensor("counts", counts).detach().cpu(), self.num_samples)
        self._mu = mu
        self.cache: dict[Any, Any] = {}
        never, always = int((self.counts == 0).sum()), int((self.counts == self.num_samples).sum())
        if degenerate != "ignore" and never + always:
            message = (
                f"counts: {never} of {len(self.counts)} labels occur in no training sample and {always} in all "
                f"{num_samples}; their counts are taken as 1 and {self.num_samples - 1}"
            )
            if degenerate == "error":
                raise ValueError(message)
            warnings.warn(message, stacklevel=3)

    @property
    def mu(self) -> float | None:
        """The midpoint that :meth:`suggest_mu` gives for the training targets, which the rebalanced losses take; None
        where only counts are known."""
        return self._mu

    @classmethod
    def from_counts(
        cls, counts: Any, num_samples: int, *, mu: float | None = None, degenerate: str = "warn"
    ) -> LabelStatistics:
        """As the constructor, under the name that stands beside :meth:`from_targets`."""
        return cls(counts, num_samples, mu=mu, degenerate=degenerate)

    @classmethod
    def from_targets(cls, targets: Any, num_labels: int | None = None, *, degenerate: str = "warn") -> LabelStatistics:
        """From the training targets, with their ``mu`` (None where no sample has a label).

        Args:
            targets: SparseTargets; a dense [N, C] tensor, array or table such as a pandas DataFrame, of any real dtype;
                a scipy or torch sparse matrix; or an iterable of each sample's label ids. Lists of multi-hot rows are
                given as ``np.array(rows)``.
            num_labels: C; needed for label ids.
            degenerate: as in :meth:`from_counts`.

        Raises:
            TypeError, ValueError: naming what was expected and what came.
        """
        sparse = as_sparse_targets(targets, num_labels)
        counts = torch.bincount(sparse.col, minlength=sparse.num_labels)
        statistics = cls.from_counts(counts, len(sparse), degenerate=degenerate)
        if len(sparse.col):
            statistics._mu = _midpoint(sparse, statistics.inverse_frequency)
        return statistics

    @property
    def num_labels(self) -> int:
        return self.counts.shape[0]

    @property
    def clamped_counts(self) -> Tensor:
        """float64 [C], the counts, raised to at least 1 and lowered to at most N_train - 1."""
        return self.counts.clamp(1, self.num_samples - 1).double()

    @property
    def prior(self) -> Tensor:
        """float64 [C], the share n / N_train of the training samples that carry each label, with the clamped counts."""
        return self.clamped_counts / self.num_samples

    @property
    def inverse_frequency(self) -> Tensor:
        """float64 [C], 1 / n with the clamped counts."""
        return self.clamped_counts.reciprocal()

    def ntr_bias(self, kappa: float = 0.05) -> Tensor:
        """float64 [C], the negative-tolerant bias kappa * log(N_train / n - 1) (Huang et al., 2021, section 3.3)."""
        return kappa * torch.log(self.num_samples / self.clamped_counts - 1)

    def class_balanced_weight(self, beta: float = 0.9) -> Tensor:
        """float64 [C], the weight (1 - beta) / (1 - beta**n) (Cui et al., CVPR 2019, equation 2).

        Raises:
            ValueError: for a beta outside [0, 1).
        """
        if not 0 <= beta < 1:
            raise ValueError(f"beta: expected a number in [0, 1), got {beta}")
        return class_balanced_weight(self.clamped_counts, beta)

    def suggest_mu(self, targets: Any) -> float:
        """The midpoint mu for the rebalanced weight: the average of mean and median of r over the label occurrences.

        The 6,769 training documents of Reuters give 0.903; the paper uses 0.9 (Huang et al., 2021, section 3.2).
        ``targets`` are the training targets, in any form that :meth:`from_targets` takes.

        Raises:
            TypeError, ValueError: for targets without a single label, and as :meth:`from_targets`.
        """
        sparse = as_sparse_targets(targets, self.num_labels)
        if not len(sparse.col):
            raise ValueError("targets: expected at least one label, got none")
        return _midpoint(sparse, self.inverse_frequency)

    def frequency_groups(self, *, head: int, tail: int) -> FrequencyGroups:
        """Masks, bool [C], of the head (n >= head), tail (n <= tail) and medium (all other) labels.

        The paper takes head=35, tail=8 for Reuters and head=50, tail=15 for PubMed (Huang et al., 2021, section 4.1).

        Raises:
            TypeError, ValueError: unless both are integers and tail < head.
        """
        head, tail = as_integer("head", head), as_integer("tail", tail)
        if not tail < head:
            raise ValueError(f"tail: expected less than head = {head}, got {tail}")
        is_head, is_tail = self.counts >= head, self.counts <= tail
        return FrequencyGroups(head=is_head, medium=~(is_head | is_tail), tail=is_tail)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``counts``, ``num_samples`` and ``mu`` as an uncompressed NumPy archive at exactly ``path``.

        Whoever reads ``path`` finds the old content or the new, never a part; after an error, the old.

        Raises:
            OSError: naming the path, where it cannot be written or is a folder or a device.
        """
        # The file that a link leads to is replaced; the link stays.
        target = os.path.realpath(path)
        if os.path.exists(target) and not os.path.isfile(target):
            raise FileExistsError(errno.EEXIST, "a folder or device, which cannot be replaced", os.fspath(path))
        temporary = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.tmp")
        try:
            with open(temporary, "xb") as file:
                values: dict[str, Any] = {"counts": self.counts.numpy(), "num_samples": np.int64(self.num_samples)}
                if self.mu is not None:
                    values["mu"] = np.float64(self.mu)
                np.savez(file, **values)
                file.flush()
                # Without this a crash of the machine may leave the new name with no content.
                os.fsync(file.fileno())
            if os.path.exists(target):
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        except OSError as error:
            # A full disk shows in calls that name no file, or the temporary one.
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        finally:
            # It is there no more where it has replaced the target.
            with contextlib.suppress(OSError):
                os.unlink(temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> LabelStatistics:
        """Reads what :meth:`save` wrote; files of earlier versions have no ``mu``.

        Raises:
            OSError, ValueError: where there is no file, and for one that is no such archive.
        """
        with open(path, "rb") as file:
            try:
                with np.load(file, allow_pickle=False) as archive:
                    counts, num_samples = archive["counts"], archive["num_samples"]
                    mu = archive.get("mu")
                if num_samples.shape or num_samples.dtype.kind not in "iu":
                    raise TypeError(f"num_samples: expected an integer, got {num_samples!r}")
                mu = None if mu is None else as_number("mu", mu[()])
            except Exception as error:
                # NumPy and zipfile raise errors of a dozen classes for a damaged archive.
                raise ValueError(f"path: expected an archive that LabelStatistics.save wrote, got {path}") from error
        return cls.from_counts(counts, int(num_samples), mu=mu, degenerate="ignore")

    def __getstate__(self) -> dict[str, Any]:
        return {"counts": self.counts, "num_samples": self.num_samples, "_mu": self.mu, "cache": {}}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelStatistics):
            return NotImplemented
        numbers, others = (self.num_samples, self.mu), (other.num_samples, other.mu)
        return numbers == others and torch.equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash((self.num_samples, self.num_labels))

    def __repr__(self) -> str:
        mu = "" if self.mu is None else f", mu={self.mu!r}"
        return f"LabelStatistics(num_labels={self.num_labels}, num_samples={self.num_samples}{mu})"
