"""Large tensors on the CPU, whose memory goes from one to the next of its size."""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from fused_balanced_loss.backends import memory

CPU = torch.device("cpu")
LARGE = memory._MAPPED_FROM // 4
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere it is torch.empty")


@pytest.fixture(autouse=True)
def switched_on(monkeypatch):
    monkeypatch.setattr(memory, "_KEEPS", True)
    memory._kept.clear()
    yield
    memory._kept.clear()


def large(count=LARGE, dtype=torch.float32):
    return memory.empty((2, count // 2), dtype, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_is_a_tensor_like_any_other(dtype):
    one = large(2 * LARGE, dtype).zero_()
    one[1, 3] = 2
    assert one.shape == (2, LARGE) and one.dtype == dtype and one.is_contiguous() and one.sum() == 2


def test_memory_goes_to_the_next_of_its_size():
    one = large()
    place = one.data_ptr()
    del one
    assert large(LARGE + 1024).data_ptr() != place
    assert large().data_ptr() == place


def test_memory_in_use_is_nobody_elses():
    one = large().fill_(1)
    view, storage = one[1, 5:7], one.untyped_storage()
    del one
    other = large().fill_(2)
    assert view.tolist() == [1, 1]
    del view
    assert large().fill_(3).data_ptr() not in (other.data_ptr(), storage.data_ptr())


def test_a_gradient_is_not_copied_and_leaves_its_memory():
    weight = torch.zeros(2, LARGE // 2, requires_grad=True)

    class Gives(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            ctx.gradient = large().fill_(1)
            ctx.place = ctx.gradient.data_ptr()
            return weight.new_zeros(())

        @staticmethod
        def backward(ctx, upstream):
            places.append(ctx.place)
            gradient, ctx.gradient = ctx.gradient, None
            return gradient

    places = []
    for _ in range(2):
        Gives.apply(weight).backward()
        assert weight.grad.data_ptr() == places[-1]
        weight.grad = None
        gc.collect()
    assert places[0] == places[1]


def test_few_are_kept():
    several = [large(LARGE + 1024 * k) for k in range(5)]
    del several
    gc.collect()
    assert len(memory._kept) == memory._MOST_KEPT


def test_is_off_unless_asked_for():
    code = "from fused_balanced_loss.backends import memory; print(memory._KEEPS)"
    for value, expected in ((None, "False"), ("0", "False"), ("1", "True")):
        environment = {name: text for name, text in os.environ.items() if name != "FUSED_BALANCED_LOSS_KEEP_MEMORY"}
        if value is not None:
            environment["FUSED_BALANCED_LOSS_KEEP_MEMORY"] = value
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | {"PYTHONPATH": str(Path(memory.__file__).parents[2])},
            capture_output=True, text=True, check=True, timeout=300)  # fmt: skip
        assert done.stdout.strip() == expected


def test_switched_off_nothing_is_kept(monkeypatch):
    monkeypatch.setattr(memory, "_KEEPS", False)
    one = large()
    # Torch's own memory can be resized.
    one.untyped_storage().resize_(8)
    del one
    assert not memory._kept


def test_small_ones_and_other_devices_are_torchs():
    assert memory.empty((3, 4), torch.float32, CPU).shape == (3, 4)
    assert memory.empty((LARGE,), torch.float32, torch.device("meta")).is_meta
    assert not memory._kept


def test_threads_share_nothing():
    wrong = []

    def work(number):
        for _ in range(20):
            own = large()
            own[0, ::4096] = number
            wrong.append((own[0, ::4096] != number).any().item())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 80 and not any(wrong)


def test_without_huge_pages_or_room(monkeypatch):
    class Refuses(memory.mmap.mmap):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(memory.mmap, "mmap", Refuses)
    one = large().fill_(1)
    assert one.sum() == LARGE
    del one
    assert not memory._kept

    def full(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory.mmap, "mmap", full)
    assert large().shape == (2, LARGE // 2)
