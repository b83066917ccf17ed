"""The model of a GPU's time: its parts add up, and the package's chunks are those of the model."""

from pathlib import Path

import pytest
import torch

from fused_balanced_loss.classifier.label_chunks import (
    CHUNK_BYTES,
    UPDATE_CHUNK_BYTES,
    default_chunk_size,
    even_chunk_size,
)

SWEEP = ((32, 18_211), (128, 131_072), (128, 670_091))


@pytest.fixture
def models(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import classifier_model
    import hardware
    import time_model

    return classifier_model, time_model, hardware.GPUS


def test_a_kernel_takes_its_launch_and_its_longest_part(models):
    _, time, gpus = models
    gpu = gpus["H200"]
    kernel = time.Kernel("", memory_bytes=4.3e9, flops=1e9, launches=2)
    assert kernel.seconds(gpu) == pytest.approx(2 * time.ASSUMED.launch + 4.3e9 / (0.9 * 4.8e12))
    kernel = time.Kernel("", elements=1e9, instructions=33.0)
    assert kernel.seconds(gpu) == pytest.approx(time.ASSUMED.launch + 1e9 * 33 / (132 * 128 * gpu.clock))


@pytest.mark.parametrize(("rows", "expected"), [(1, 41.8), (64, 41.8), (256, 35.7), (1024, 32.2), (4096, 32.2)])
def test_instructions_by_rows(models, rows, expected):
    assert models[1].instructions(rows) == pytest.approx(expected)
    assert models[1].instructions(rows) >= models[1].instructions(rows + 1)


@pytest.mark.parametrize("shape", SWEEP)
@pytest.mark.parametrize("name", ["H100", "H200"])
def test_the_classifier_is_above_its_floor_and_fewer_kernels_take_less(models, name, shape):
    classifier, time, gpus = models
    one, gpu = classifier.Classifier(*shape), gpus[name]
    seconds = [time.total(classifier.classifier_kernels(one, gpu, how=how), gpu) for how in classifier.WAYS]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] > max(classifier.floor(one, gpu).values())
    # The decision that no kernel computes the loss as an epilogue of the logits' product.
    assert seconds[1] > 0.85 * seconds[0]
    # The goal, and the choice of the chunk.
    small = time.total(classifier.classifier_kernels(one, gpu, 20 << 20), gpu)
    assert seconds[0] <= small
    if shape[1] == 670_091:
        assert seconds[0] <= 2 * max(classifier.floor(one, gpu).values()) < small


@pytest.mark.parametrize(
    "other",
    [
        {"launch": 1.5e-6},
        {"launch": 4e-6},
        {"latency": 0.0},
        {"latency": 3e-6},
        {"cache": 0.3},
        {"cache": 1.0},
        {"tensor": 0.55},
        {"tensor": 0.85},
    ],
    ids=str,
)
def test_the_decisions_hold_for_other_assumptions(models, other, monkeypatch):
    classifier, time, gpus = models
    for module in (classifier, time):
        monkeypatch.setattr(module, "ASSUMED", time.ASSUMED._replace(**other))
    for shape in SWEEP[1:]:
        for name in ("H100", "H200"):
            one, gpu = classifier.Classifier(*shape), gpus[name]
            separate, epilogue = (
                time.total(classifier.classifier_kernels(one, gpu, how=how), gpu) for how in classifier.WAYS[:2]
            )
            assert 1 - epilogue / separate < 0.15
            assert separate < time.total(classifier.classifier_kernels(one, gpu, 32 << 20), gpu)


@pytest.mark.parametrize("shape", [*SWEEP, (4096, 18_211), (4096, 131_072), (1, 3_000_000)])
def test_chunks_are_those_of_the_package(models, shape):
    one = models[0].Classifier(*shape)
    for update, most in ((False, CHUNK_BYTES), (True, UPDATE_CHUNK_BYTES)):
        of_model = models[0].UPDATE_CHUNK_BYTES if update else models[0].CHUNK_BYTES
        assert most["cuda"] == of_model
        size = default_chunk_size(shape[0], 768, torch.bfloat16, torch.device("cuda"), update=update)
        assert one.chunks(of_model)[0] == even_chunk_size(size, shape[1])


@pytest.mark.parametrize("shape", SWEEP)
@pytest.mark.parametrize("name", ["H100", "H200"])
def test_the_classifier_is_never_slower_than_what_it_replaces(models, shape, name):
    classifier, time, gpus = models
    one, gpu = classifier.Classifier(*shape), gpus[name]
    ours, linear = (
        time.total(kernels(one, gpu), gpu) for kernels in (classifier.classifier_kernels, classifier.linear_kernels)
    )
    assert ours <= linear


def test_an_update_that_keeps_the_gradient_takes_less_time(models):
    classifier, time, gpus = models
    one = classifier.Classifier(128, 1_000_000)
    made_again, kept = (
        time.total(classifier.update_kernels(one, gpus["H200"], keep_gradient=keep), gpus["H200"])
        for keep in (False, True)
    )
    assert kept < made_again


def test_the_page_is_what_the_command_makes(models):
    import predictions

    assert predictions.PAGE.read_text() == predictions.page()


def test_predictions_are_found_by_the_settings_of_a_record(models):
    import predictions

    settings = {"operation": "logits", "loss": "DB", "rows": 1024, "labels": 18_211, "dtype": "bfloat16"}
    found = predictions.predicted(settings | {"targets": "csr"}, "NVIDIA H100 80GB HBM3")
    assert found["ours"] == predictions.predict_logits(predictions.GPUS["H100"], 1024, 18_211)
    sizes = {"operation": "classifier", "rows": 128, "labels": 670_091, "features": 768, "dtype": "bfloat16"}
    assert set(predictions.predicted(sizes, "NVIDIA H200")) == {"ours", "F.linear + our loss"}
    assert predictions.predicted(sizes, "Some GPU") == {} == predictions.predicted({"operation": "device"}, "H100")
