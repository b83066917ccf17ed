"""What all commands of the experiments do with a corpus."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable

import torch
from corpora.cache import CacheError
from corpora.corpus import Corpus, CorpusError
from encoders.encoder import EncoderError
from experiment import Experiment
from options import Options
from progress import Progress
from records import RecordError, RecordStore
from report.corpus_figures import write_corpus_figures
from results import print_summary, print_tables, write_results

FAILED, INTERRUPTED = 1, 130


def run_command(options: Options, load: Callable[[Progress], Corpus]) -> int:
    """Loads the corpus, does all runs and prints the paper's tables; the exit code."""
    torch.set_num_threads(options.threads)
    # The moments of features that a batch lacks decay into denormal numbers, with which a CPU is slow.
    torch.set_flush_denormal(True)
    progress = Progress()
    notice = None
    try:
        corpus = load(progress)
        notice = corpus.notice
        if notice:
            print(notice, flush=True)
        return _run(corpus, options, progress)
    except KeyboardInterrupt:
        print("\n\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except (CacheError, CorpusError, EncoderError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    finally:
        if notice:
            print(notice, flush=True)


def _run(corpus: Corpus, options: Options, progress: Progress) -> int:
    start = time.perf_counter()
    print("\n".join((corpus.describe(), *corpus.remarks)))
    store = RecordStore(options.output / "records", warn=progress.warn)
    experiment = Experiment(
        corpus, options.encoder, options.plan, store, options.output / "work", options.cache, progress
    )
    code, reason = 0, ""
    try:
        write_corpus_figures(corpus, options.output)
        experiment.run_missing()
    except KeyboardInterrupt:
        code, reason = INTERRUPTED, "Interrupted."
    except (RecordError, EncoderError, CacheError, OSError) as error:
        code, reason = FAILED, f"error: {error}"
    records = experiment.records()
    if reason:
        print(f"\n\n{reason}", file=sys.stderr if code == FAILED else sys.stdout, flush=True)
    if records:
        print_tables(records)
    if code:
        print(f"The same command goes on from here: {shlex.join(['python', *sys.argv])}")
        return code
    print_summary(experiment)
    for path in write_results(experiment, options.output):
        print(f"wrote {path}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0
