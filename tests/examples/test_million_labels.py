"""The memory account of a large classifier, at small sizes."""

import classifier_ways
import million_labels
import pytest

SMALL = ["--labels", "700", "--features", "8", "--batch", "4", "--steps", "2"]


@pytest.fixture
def in_this_process(monkeypatch):
    def run(way, settings, ranks):
        said = []
        return classifier_ways.train(way, *settings, said.append)

    monkeypatch.setattr(million_labels, "_run_apart", run)


def test_every_way_has_the_same_loss(in_this_process):
    losses = {way: classifier_ways.train(way, 700, 8, 4, 2, lambda text: None)["loss"] for way in classifier_ways.WAYS}
    assert losses["fused"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["update"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["update-bfloat16"] == pytest.approx(losses["plain"], rel=0.05)


def test_command_prints_an_account(in_this_process, capsys):
    assert million_labels.main([*SMALL, "--ways", *classifier_ways.WAYS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == list(classifier_ways.WAYS)
    assert "peak measured" in lines[-5]


def test_own_process_reports_progress(capsys):
    assert million_labels.main([*SMALL, "--ways", "update"]) == 0
    assert "update: step 2/2: loss" in capsys.readouterr().out


def test_ranks_share_the_labels(capsys):
    assert million_labels.main([*SMALL, "--ranks", "2", "--ways", "plain", "fused", "update"]) == 0
    out = capsys.readouterr().out
    assert "plain: left out: its labels cannot be sharded" in out
    losses = [line.split()[-1] for line in out.splitlines()[-2:]]
    assert losses[0] == losses[1]
    whole = classifier_ways.account("update", 1_000_000, 256, 32)
    assert classifier_ways.account("update", 1_000_000, 256, 32, ranks=4)["weights"] == whole["weights"] / 4


def test_what_the_machine_cannot_hold_is_not_begun(monkeypatch, capsys):
    monkeypatch.setattr(million_labels, "available_memory", lambda: 1e9)
    monkeypatch.setattr(million_labels, "_run_apart", lambda *_: pytest.fail("begun"))
    assert million_labels.main([]) == million_labels.REFUSED
    out = capsys.readouterr().out
    assert "plain: not begun: needs about" in out and "update: not begun" in out


def test_a_way_that_ends_early_is_told(monkeypatch, capsys):
    monkeypatch.setattr(million_labels, "_run_apart", lambda *_: "ended with exit code -9")
    assert million_labels.main([*SMALL, "--ways", "fused"]) == million_labels.FAILED
    assert "fused: ended with exit code -9" in capsys.readouterr().err


def test_account_is_smaller_way_by_way():
    totals = [sum(classifier_ways.account(way, 10**6, 256, 128).values()) for way in classifier_ways.WAYS]
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("bad", [["--labels", "1"], ["--ways", "other"], ["--batch", "x"]])
def test_bad_arguments(bad, capsys):
    with pytest.raises(SystemExit):
        million_labels.main(bad)
    assert bad[0] in capsys.readouterr().err
