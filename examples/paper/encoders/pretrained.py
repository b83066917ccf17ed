"""Tokenizer, tokens and classifier from a name of the Hugging Face hub or a local folder, or a clear reason why not."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from corpora.corpus import Corpus, Split, cached_parts
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from files import digest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from progress import progress
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from encoders.encoder import EncoderError

HUB_SECONDS = 10.0
BATCH = 1000

Tokens = dict[str, Dataset]

# No bars and remarks of transformers' own, such as that the classifier is new.
logging.set_verbosity_error()
logging.disable_progress_bar()


def load_pretrained(load: Callable[..., Any], model: str, **options: Any) -> Any:
    """``load``, a ``from_pretrained``, of the local folder or the hub's cache, else of the hub.

    Raises:
        EncoderError: saying whether the model is unknown, broken or out of reach.
    """
    try:
        try:
            return load(model, local_files_only=True, **options)
        except (OSError, ValueError):
            if Path(model).is_dir():
                raise
            # Asked once and for a short time: transformers would try for minutes.
            HfApi().model_info(model, timeout=HUB_SECONDS)
        return load(model, **options)
    except MemoryError:
        raise
    # Broken files raise whatever the reader of their format raises.
    except Exception as error:
        raise EncoderError(f"--model {model}: {_reason(model, error)}") from error


def _reason(model: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:300]
    if Path(model).is_dir():
        return (
            "the folder cannot be loaded; expected what save_pretrained of model and tokenizer writes "
            f"(config.json, model.safetensors, tokenizer.json): {said}"
        )
    if isinstance(error, RepositoryNotFoundError):
        return "neither a local folder nor a model of the Hugging Face hub; expected the path or the name of one"
    if isinstance(error, HfHubHTTPError | ValueError):
        return f"cannot be had from the Hugging Face hub: {said}"
    return (
        f"not a local folder, not in the hub's cache, and the hub cannot be reached ({said}); connect once, or give "
        "the path of a folder that holds the model"
    )


def check_length(option: str, model: str, most: int | None, length: int) -> None:
    if most is not None and length > most:
        raise EncoderError(f"{option}: {model} takes at most {most} tokens, got {length}")


def load_tokenizer(model: str, max_length: int, option: str = "--bert-max-length") -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        EncoderError: where there is none, or it cannot take ``max_length`` tokens or pad.
    """
    tokenizer = load_pretrained(AutoTokenizer.from_pretrained, model)
    if tokenizer.pad_token is None:
        raise EncoderError(f"--model {model}: its tokenizer has no padding token, which batches of texts need")
    check_length(option, model, tokenizer.model_max_length, max_length)
    return tokenizer


def tokenize(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, max_length: int, cache: Path) -> Tokens:
    """``input_ids`` and ``labels`` (label ids) by part, memory-mapped; at most ``max_length`` tokens of a text.

    Raises:
        CacheError: where the cache cannot be written.
    """
    # All that turns a text into ids; not the length, which the tokenizer keeps from its last call.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    state = {key: value for key, value in state.items() if key not in ("truncation", "padding")}
    made_of = {
        "tokenizer": digest([type(tokenizer).__name__, tokenizer.truncation_side, state]),
        "tokenizers": tokenizers.__version__,
        "max_length": max_length,
    }
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})

    def write(path: Path, split: Split) -> None:
        with ArrowWriter(features=features, path=str(path), writer_batch_size=BATCH) as writer:
            for start in range(0, len(split), BATCH):
                here = slice(start, min(start + BATCH, len(split)))
                tokens = tokenizer(list(split.texts[here]), truncation=True, max_length=max_length)
                writer.write_batch({"input_ids": tokens["input_ids"], "labels": split.targets[here].to_lists()})
                progress.say(f"{here.stop:,} of {len(split):,} {path.name} documents tokenised")
            writer.finalize()

    return cached_parts(corpus, cache, "tokens", made_of, lambda: write, lambda path: Dataset.from_file(str(path)))


def load_classifier(
    model: str, label_names: Sequence[str], max_length: int, initial_bias: float = 0.0
) -> PreTrainedModel:
    """The model in float32, with a classifier of ``label_names``: new, unless it brings one of that size.

    initial_bias: of the new classifier.

    Raises:
        EncoderError: where there is no such model, its files are broken, or do not hold an encoder's weights.
    """
    names = dict(enumerate(label_names))
    classifier, loading = load_pretrained(
        AutoModelForSequenceClassification.from_pretrained,
        model,
        num_labels=len(names),
        id2label=names,
        label2id={name: label for label, name in names.items()},
        problem_type="multi_label_classification",
        dtype=torch.float32,
        output_loading_info=True,
        # A checkpoint that was fine-tuned elsewhere brings a classifier of another size.
        ignore_mismatched_sizes=True,
    )
    body = f"{classifier.base_model_prefix}."
    absent = {*loading["missing_keys"], *(name for name, *_ in loading["mismatched_keys"])}
    if missing := sorted(name for name in absent if name.startswith(body) and ".pooler." not in name):
        raise EncoderError(
            f"--model {model}: its weights lack {len(missing)} of the encoder's, such as {missing[0]}; expected a "
            "pretrained encoder"
        )
    biases = [value for name, value in classifier.named_parameters() if name in absent and value.shape == (len(names),)]
    if biases:
        # A head of several layers ends with it.
        torch.nn.init.constant_(biases[-1], initial_bias)
    elif initial_bias:
        raise EncoderError(
            f"--bert-initial-bias: {model} gets no new classifier with a bias; expected 0, got {initial_bias:g}"
        )
    check_length("--bert-max-length", model, getattr(classifier.config, "max_position_embeddings", None), max_length)
    return classifier
