"""The parts of the cost model add up, and go with labels and ranks as they must."""

from pathlib import Path

import pytest


@pytest.fixture
def model(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import scaling_model

    return scaling_model


def test_parts_add_up(model):
    step, hardware = model.Step(10_000_000, ranks=8), model.Hardware()
    parts, memory = model.seconds(step, hardware), model.memory_bytes(step)
    names = ("products", "loss", "memory", "launches", "network")
    assert parts["sum"] == pytest.approx(sum(parts[name] for name in names))
    assert max(parts["products"], parts["loss"], parts["network"]) <= parts["floor"] <= parts["sum"]
    assert model.seconds(step, hardware._replace(cached=1))["memory"] < parts["memory"]
    assert memory.pop("total") == pytest.approx(sum(memory.values()))
    assert memory["weights"] == 2 * 1_250_000 * (768 + 1)
    assert parts["products"] == 8 * 1024 * 1_250_000 * 768 / hardware.flops


def test_ranks_share_all_but_statistics_and_messages(model):
    one, eight = (model.Step(8_000_000, ranks=ranks) for ranks in (1, 8))
    alone, shared = model.seconds(one, model.Hardware()), model.seconds(eight, model.Hardware())
    assert all(alone[name] == pytest.approx(8 * shared[name]) for name in ("products", "loss", "memory"))
    # Whole chunks.
    assert alone["launches"] == pytest.approx(8 * shared["launches"], rel=0.1)
    assert alone["network"] == 0 < shared["network"]
    assert model.memory_bytes(one)["statistics"] == model.memory_bytes(eight)["statistics"]
