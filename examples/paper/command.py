"""What all commands of the experiments do with a corpus."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable

import torch
from corpora.corpus import Corpus, CorpusError
from encoders.encoder import EncoderError
from experiment import Experiment
from files import CacheError
from machine import describe_memory, is_main, number_of_processes
from progress import Progress
from records import KINDS, RecordError
from report.corpus_figures import corpus_sizes, write_corpus_figures
from report.document import make_report, tables_text
from report.tables import corpus_table

FAILED, INTERRUPTED = 1, 130


def run_command(options: argparse.Namespace, load: Callable[[Progress], Corpus]) -> int:
    """Loads the corpus, does all runs and prints the paper's tables; the exit code."""
    if not options.encoder.distributed and number_of_processes() > 1:
        if not is_main():
            return 0
        print(f"--encoder {options.encoder.name} trains in one process; the others have ended", flush=True)
    torch.set_num_threads(options.threads)
    # The moments of features that a batch lacks decay into denormal numbers, with which a CPU is slow.
    torch.set_flush_denormal(True)
    progress = Progress()
    notice = None
    try:
        corpus = load(progress)
        notice = corpus.notice
        if notice:
            progress.note(notice)
        return _run(Experiment(corpus, options, progress))
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        try:
            os.write(sys.stdout.fileno(), b"\n")
            print(f"error: {error}", file=sys.stderr)
        except BrokenPipeError:
            # Whoever read the output has gone, as ``head`` does.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (CacheError, CorpusError, EncoderError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    finally:
        if notice:
            progress.note(notice)


def _run(experiment: Experiment) -> int:
    corpus, options, progress = experiment.corpus, experiment.options, experiment.progress
    start = time.perf_counter()
    if not is_main():
        experiment.run_missing()
        return 0
    progress.note(corpus.describe())
    print(f"\n{corpus_table(corpus_sizes(corpus)).text()}\n")
    print(f"memory with the corpus at hand: {describe_memory()}", flush=True)
    failure = ""
    try:
        write_corpus_figures(corpus, options.output)
        experiment.run_missing()
    except KeyboardInterrupt:
        failure = "Interrupted."
    except (RecordError, EncoderError, CacheError, OSError) as error:
        failure = f"error: {error}"
    progress.note("")
    if tables := tables_text(experiment.records(), corpus.paper):
        print(f"{tables}\n")
    if failure:
        print(failure, file=sys.stderr, flush=True)
        print(f"The same command goes on from here: {shlex.join(['python', *sys.argv])}")
        return INTERRUPTED if failure == "Interrupted." else FAILED
    if validation := experiment.validation_mean():
        micro, macro = (100 * validation[kind] for kind in KINDS)
        print(f"validation micro/macro-F1, mean of the losses: {micro:.2f}/{macro:.2f}")
    for path in make_report([options.output], options.output / "report", progress.warn)[-3:]:
        print(f"wrote {path}")
    print(f"{time.perf_counter() - start:.0f} s in all")
    return 0
