"""The memory account of a large classifier, at small sizes."""

import pytest
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

pytest.importorskip("psutil")
pytest.importorskip("tabulate")

import million_labels

pytestmark = pytest.mark.slow

SMALL = ["--labels", "700", "--features", "8", "--batch", "4", "--steps", "2"]


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(million_labels, "run_apart", lambda way, sizes, ranks: million_labels.train(way, *sizes))


def test_every_way_has_the_same_loss(in_this_process):
    losses = {way: million_labels.train(way, 700, 8, 4, 2)["loss"] for way in million_labels.WAYS}
    assert losses["fused"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["update"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["update-bfloat16"] == pytest.approx(losses["plain"], rel=0.05)


def test_command_prints_an_account(in_this_process, capsys):
    assert million_labels.main([*SMALL, "--ways", *million_labels.WAYS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == list(million_labels.WAYS)
    assert "peak measured" in lines[-5]


def test_own_process_reports_progress(capfd):
    assert million_labels.main([*SMALL, "--ways", "update"]) == 0
    assert "update: step 2/2: loss" in capfd.readouterr().out


def test_ranks_share_the_labels(capfd):
    assert million_labels.main([*SMALL, "--ranks", "2", "--ways", "plain", "fused", "update"]) == 0
    out = capfd.readouterr().out
    assert "plain: left out: its labels cannot be sharded" in out
    losses = [float(line.split()[-1]) for line in out.splitlines()[-2:]]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2), "printed with three digits"
    whole = million_labels.account("update", 1_000_000, 256, 32)
    assert million_labels.account("update", 1_000_000, 256, 32, ranks=4)["weights"] == whole["weights"] / 4


def test_what_the_machine_cannot_hold_is_not_begun(monkeypatch, capsys):
    monkeypatch.setattr(million_labels, "available_memory", lambda: 1e9)
    monkeypatch.setattr(million_labels, "run_apart", lambda *_: pytest.fail("begun"))
    assert million_labels.main([]) == million_labels.REFUSED
    out = capsys.readouterr().out
    assert "plain: not begun: needs about" in out and "update: not begun" in out


@pytest.mark.parametrize(
    ("death", "message"), [("exit", "fused: was killed"), ("raise", "fused: RuntimeError: no room")]
)
def test_a_way_that_ends_early_is_told(monkeypatch, capsys, death, message):
    def fail(*_):
        if death == "exit":
            raise ProcessExitedException("gone", 0, 1, exit_code=-9)
        raise ProcessRaisedException("Traceback\nRuntimeError: no room", 0, 1)

    monkeypatch.setattr(million_labels, "run_apart", fail)
    assert million_labels.main([*SMALL, "--ways", "fused"]) == million_labels.FAILED
    assert message in capsys.readouterr().err


def test_account_is_smaller_way_by_way():
    totals = [sum(million_labels.account(way, 10**6, 256, 128).values()) for way in million_labels.WAYS]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("bad", [["--labels", "1"], ["--ways", "other"], ["--batch", "x"]])
def test_bad_arguments(bad, capsys):
    with pytest.raises(SystemExit):
        million_labels.main(bad)
    assert bad[0] in capsys.readouterr().err
