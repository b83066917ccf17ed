"""The report: confused labels, corpus figures, tables, pictures."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest
import torch

for package in ("matplotlib", "pandas", "scipy", "sklearn", "tabulate"):
    pytest.importorskip(package)

import make_report  # noqa: E402
from corpora.corpus import Corpus, Split  # noqa: E402
from encoders import scoring  # noqa: E402
from encoders.scoring import confused_pairs  # noqa: E402
from files import atomic_file  # noqa: E402
from places import SHARED  # noqa: E402
from progress import progress  # noqa: E402
from records import METHODS  # noqa: E402
from report.agreement import CLAIMS, judge, order_table  # noqa: E402
from report.corpus_figures import corpus_sizes, read_corpus_figures, write_corpus_figures  # noqa: E402
from report.document import tables_text  # noqa: E402
from report.figures import conditional_probability, draw_co_occurrence, draw_long_tail, save  # noqa: E402
from report.groups import group_runs, read_runs, summarize  # noqa: E402
from report.paper_scores import paper_scores  # noqa: E402
from report.table import Table, bold, plain  # noqa: E402
from report.tables import (  # noqa: E402
    ablation_table,
    confusion_table,
    corpus_table,
    frequency_table,
    instance_table,
    runs_table,
)

from fused_balanced_loss import SparseTargets  # noqa: E402
from fused_balanced_loss.spec import PAPER_LOSSES  # noqa: E402

FINGERPRINT = "0123456789abcdef"


def make_corpus(num_labels=12, num_documents=300, seed=0, **changes):
    rng = np.random.default_rng(seed)

    def split(size):
        lists = [
            sorted({int(label) for label in (rng.random(1 + rng.integers(3)) ** 3 * num_labels)}) for _ in range(size)
        ]
        return Split([f"text {k}" for k in range(size)], SparseTargets.from_lists(lists, num_labels))

    fields = {
        "name": "Small corpus",
        "label_names": [f"label{k}" for k in range(num_labels)],
        "train": split(num_documents),
        "validation": split(20),
        "test": split(40),
        "fingerprint": FINGERPRINT,
        "head": 35,
        "tail": 8,
        "instance_groups": {"single": (1, 1), "multi": (2, None)},
        "paper": "reuters",
    }
    return Corpus(**(fields | changes))


@pytest.mark.parametrize("block", [1, 5, 256])
def test_confused_pairs_are_counted_once_an_instance(monkeypatch, block):
    monkeypatch.setattr(scoring, "BLOCK", block)
    rng = np.random.default_rng(0)
    targets, predictions = (torch.from_numpy(rng.random((200, 12)) < share) for share in (0.15, 0.2))
    names = [f"label{k}" for k in range(12)]
    expected = Counter(
        (missed, wrong)
        for row in range(200)
        for missed in range(12)
        for wrong in range(12)
        if targets[row, missed] > predictions[row, missed] and predictions[row, wrong] > targets[row, wrong]
    )
    order = sorted(expected, key=lambda pair: (-expected[pair], pair))
    for top in (1, 7, 1000):
        pairs = confused_pairs(*map(SparseTargets.from_dense, (predictions, targets)), names, top)
        assert pairs == [
            {"missed": names[missed], "predicted": names[wrong], "count": expected[missed, wrong]}
            for missed, wrong in order[:top]
        ]


def test_without_errors_there_are_no_pairs():
    targets = SparseTargets.from_lists([[0], [1, 2], []], 3)
    assert confused_pairs(targets, targets, ["a", "b", "c"]) == []
    with pytest.raises(ValueError, match=r"expected shape \[3, 3\] and 3 names"):
        confused_pairs(targets, targets, ["a"])


def test_corpus_figures_are_written_once_and_read(tmp_path):
    corpus = make_corpus()
    write_corpus_figures(corpus, tmp_path / "run")
    figures = read_corpus_figures(tmp_path / "run")
    dense = corpus.train.targets.to_dense(torch.int64).numpy()
    assert np.array_equal(figures.co_occurrence.toarray(), dense.T @ dense)
    assert figures.counts.tolist() == dense.sum(0).tolist()
    assert figures.label_names == corpus.label_names
    sizes = figures.sizes
    assert sizes["documents"] == {"train": 300, "validation": 20, "test": 40}
    every = torch.cat([split.targets.to_dense(torch.int64) for split in corpus.splits.values()])
    assert sizes["labels_a_document"]["mean"] == pytest.approx(float(every.sum() / 360))
    assert sizes["documents_a_label"]["most"] == int(every.sum(0).max())
    assert sum(sizes["label_groups"].values()) == 12
    assert sizes["instance_groups"]["single"]["test"] == int((corpus.test.targets.crow.diff() == 1).sum())
    before = (tmp_path / "run" / "label_counts.npz").stat().st_mtime_ns
    write_corpus_figures(corpus, tmp_path / "run")
    assert (tmp_path / "run" / "label_counts.npz").stat().st_mtime_ns == before
    write_corpus_figures(dataclasses.replace(corpus, head=50), tmp_path / "run")
    assert read_corpus_figures(tmp_path / "run").sizes["head"] == 50


@pytest.mark.parametrize("name", ["corpus.json", "label_counts.npz"])
def test_broken_corpus_figures_are_named_and_rewritten(tmp_path, name):
    corpus = make_corpus()
    write_corpus_figures(corpus, tmp_path)
    whole = (tmp_path / name).read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"[]"):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(ValueError, match=name):
            read_corpus_figures(tmp_path)
    write_corpus_figures(corpus, tmp_path)
    assert read_corpus_figures(tmp_path).counts.tolist() == corpus.statistics.counts.tolist()
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError):
        read_corpus_figures(tmp_path)


def test_atomic_file_keeps_the_old_content_after_an_error(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), atomic_file(path) as temporary:
        temporary.write_text("half \udc00", encoding="utf-8")
    assert (path.read_text(), len(list(tmp_path.iterdir()))) == ("old", 1)
    with atomic_file(path) as temporary:
        temporary.write_text("new")
    assert (path.read_text(), len(list(tmp_path.iterdir()))) == ("new", 1)


def make_record(method="DB", seed=0, shift=0.0, paper="reuters", **settings):
    """The paper's own figures, moved by ``shift`` points of percent."""

    def moved(scores, names):
        return {name: {kind: max(0, f1 + shift) / 100 for kind, f1 in scores[name].items()} for name in names}

    by_label = moved(paper_scores(2, paper)[method], ("total", "head", "medium", "tail"))
    by_instance = moved(paper_scores(3, paper).get(method) or paper_scores(3, paper)["BCE"], ("single", "multi"))
    result = {
        "best_epoch": 3,
        "threshold": 0.45,
        "validation": by_label,
        "test": by_label,
        "test_by_instance": by_instance,
        "confused": [
            {"missed": "wheat", "predicted": "grain", "count": 9 + seed},
            {"missed": "gold", "predicted": "platinum", "count": 2},
        ],
        "predictions": None,
        "seconds": 12.5,
        "peak_memory_bytes": 2**30,
    }
    common = {"method": method, "seed": seed, "corpus": "Reuters-21578", "corpus_fingerprint": FINGERPRINT}
    if method == "SVM":
        shifted = {"test": by_label, "test_by_instance": by_instance}
        result["variants"] = {"SVM": shifted, "SVM, shift +0.10": shifted}
    else:
        common |= {"encoder": "tfidf", "convention": "paper", "loss": {"gamma": 2}, "training": {"epochs": 20}}
    return {
        "settings": common | settings,
        "versions": {"torch": "2.13.0", "device": "CPU"},
        "status": "done",
        "epochs": [],
        "result": result,
    }


def write_records(folder, records):
    (folder / "records").mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(records):
        (folder / "records" / f"{number:03d}.json").write_text(json.dumps(record))


def all_records():
    return [make_record(method, seed, seed - 1.0) for method in METHODS for seed in range(3 if method != "SVM" else 1)]


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(progress, "warn", said.append)
    return said


def groups_of(records, tmp_path):
    write_records(tmp_path, records)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "warn", lambda text: pytest.fail(text))
        return group_runs(read_runs([tmp_path]))


def unpadded(markdown):
    return re.sub(" +", " ", markdown)


def columns(table):
    """Texts by row and column."""
    return {(row[0], name): plain(cell) for row in table.rows for name, cell in zip(table.header, row, strict=True)}


@pytest.mark.parametrize("table", [2, 3])
def test_published_figures_are_those_of_the_paper(table):
    path = SHARED / "data" / f"paper_table{table}.csv"
    if not path.exists():
        pytest.skip("the published tables are not beside the checkout")
    names = {"single_label": "single", "multi_label": "multi", "le9": "<=9", "10_14": "10-14", "ge15": ">=15"}
    with path.open() as file:
        for row in csv.DictReader(file):
            for column, cell in row.items():
                if column != "method":
                    corpus, _, group = column.partition("_")
                    scores = paper_scores(table, corpus)[row["method"]][names.get(group, group)]
                    assert f"{scores['micro']:.2f}/{scores['macro']:.2f}" == cell
    assert {corpus: len(paper_scores(table, corpus)) for corpus in ("reuters", "pubmed", None)} == {
        "reuters": 11 - table,
        "pubmed": 11 - table,
        None: 0,
    }


@pytest.mark.parametrize("corpus", ["reuters", "pubmed"])
def test_every_claim_holds_by_the_papers_own_figures(corpus):
    scores = paper_scores(2, corpus)
    figures = {
        method: summarize([{group: {k: f / 100 for k, f in kinds.items()} for group, kinds in by_group.items()}])
        for method, by_group in scores.items()
    }
    assert [judge(claim, figures)[1:] for claim in CLAIMS] == [
        ["✓", f"{len(claim.comparisons)} of {len(claim.comparisons)}", ""] for claim in CLAIMS
    ]


def test_tables_have_means_deviations_and_the_papers_figures(tmp_path):
    (group,) = groups_of(all_records(), tmp_path)
    table = frequency_table(group, "reuters")
    cells = columns(table)
    assert cells["DB", "total ours"] == "90.62±1.00/64.47±1.00"
    assert cells["DB", "total paper"] == "90.62/64.47"
    assert cells["SVM", "tail ours"] == "21.54/12.83"
    assert [row[0] for row in table.rows] == [*METHODS, "SVM, shift +0.10"]
    assert cells["SVM, shift +0.10", "tail paper"] == ""
    assert "| CB-NTR | **90.74±1.00**/63.31±1.00 | **90.74**/63.31 |" in unpadded(table.markdown())
    by_instance = columns(instance_table(group, "reuters"))
    assert by_instance["DB", "multi ours"] == "81.17±1.00/50.12±1.00"
    assert by_instance["DB", "multi paper"] == "81.17/50.12"
    assert by_instance["SVM", "multi paper"] == ""
    order = columns(order_table(group, "reuters"))
    assert order["tail micro", "rank correlation"] == "1.00"
    assert order["tail micro", "best, ours"] == "DB"
    ablation = columns(ablation_table(group, "reuters"))
    assert ablation["R-FL", "tail ours"] == ablation["R-FL", "tail paper"] == "-23.89/-17.17"
    assert ablation["R-FL", "tail same sign"] == "✓✓"
    runs = columns(runs_table(group))
    assert (runs["DB", "seeds"], runs["DB", "peak memory, GiB"]) == ("0, 1, 2", "1.00")


def test_a_claim_that_fails_says_where():
    zeros = {group: {"micro": 0.0, "macro": 0.0} for group in ("total", "head", "medium", "tail")}
    equal = {method: summarize([zeros]) for method in PAPER_LOSSES}
    assert judge(CLAIMS[4], equal) == [
        CLAIMS[4].text,
        "✗",
        "0 of 8",
        "total micro: DB-0FL 0.00 = DB 0.00; total macro: DB-0FL 0.00 = DB 0.00; head micro: DB-0FL 0.00 = DB 0.00; "
        "head macro: DB-0FL 0.00 = DB 0.00; and 4 more",
    ]
    noisy = summarize([zeros, {group: {"micro": 0.2, "macro": 0.2} for group in zeros}])
    assert "DB-0FL 10.00 ≈ DB 0.00" in judge(CLAIMS[4], equal | {"DB-0FL": noisy})[3]
    assert judge(CLAIMS[0], {"BCE": noisy}) is None
    assert judge(CLAIMS[0], {"BCE": noisy, "DB": equal["DB"]})[2] == "0 of 4, 20 without runs"


def test_a_corpus_of_ones_own_has_no_column_of_the_paper(tmp_path):
    (group,) = groups_of(all_records(), tmp_path)
    assert frequency_table(group, None).header == ["", "total", "head", "medium", "tail"]
    assert instance_table(group, None).header == ["", "total", "single", "multi"]
    assert order_table(group, None) is None
    assert ablation_table(group, None).header[:3] == ["", "DB with", "total ours"]


def test_confused_pairs_by_method_with_the_papers_marked(tmp_path):
    (group,) = groups_of([make_record("DB", seed) for seed in range(2)] + [make_record("BCE")], tmp_path)
    cells = columns(confusion_table(group, "reuters"))
    assert cells["wheat → grain", "DB"] == "9.5"
    assert cells["★ gold → platinum", "BCE"] == "2"
    assert cells["★ yen → money-fx", "BCE"] == "≤2"
    assert ("gold → platinum", "BCE") in columns(confusion_table(group, None))


def test_missing_methods_and_seeds_are_said(tmp_path):
    (group,) = groups_of([make_record("DB", 0), make_record("DB", 1), make_record("BCE")], tmp_path)
    notes = " ".join(frequency_table(group, "reuters").notes)
    assert "No finished run of SVM, FL, CB, R-FL, NTR-FL, DB-0FL, CB-NTR." in notes
    assert "The seeds are not the same for all: BCE: 0; DB: 0, 1." in notes


def test_runs_with_other_settings_are_not_averaged_together(tmp_path):
    records = [make_record(method, seed) for method in ("BCE", "DB") for seed in range(2)]
    records += [make_record("DB", 0, 5.0, training={"epochs": 3}), make_record("FL", 0, training={"epochs": 7})]
    records[1]["result"]["learning_rate"] = 4e-4
    (group,) = groups_of(records, tmp_path)
    assert columns(runs_table(group))["BCE", "learning rate"] == "0.0004"
    assert [row.name for row in group.rows] == ["BCE", "FL", "DB", "DB (epochs 3)"]
    assert [len(row.runs) for row in group.rows] == [2, 1, 2, 1]
    assert group.by_method["DB"].name == "DB"
    assert "Not the same for all: training.epochs is 20 for BCE, DB; 7 for FL." in runs_table(group).notes


def test_groups_by_corpus_encoder_and_convention_share_the_svm(tmp_path):
    model = "frozen+tfidf:/data/models/all-MiniLM-L6-v2"
    records = [
        make_record("SVM"),
        make_record("DB"),
        make_record("DB", convention="authors"),
        make_record("DB", encoder=model),
        make_record("DB", corpus_fingerprint="other", corpus="Mine", encoder="bert:dmis-lab/biobert-base-cased-v1.1"),
    ]
    groups = groups_of(records, tmp_path)
    assert [(group.slug, [row.method for row in group.rows]) for group in groups] == [
        ("tfidf-paper", ["SVM", "DB", None]),
        ("tfidf-authors", ["SVM", "DB", None]),
        ("frozen-tfidf-all-minilm-l6-v2-paper", ["SVM", "DB", None]),
        ("bert-dmis-lab-biobert-base-cased-v1-1-paper", ["DB"]),
    ]
    assert groups[2].about == "Reuters-21578, frozen features of all-MiniLM-L6-v2 and TF-IDF, paper convention"
    (alone,) = groups_of([make_record("SVM")], tmp_path / "alone")
    assert alone.about == "Reuters-21578, TF-IDF features"


def broken(**changes):
    return json.dumps(make_record() | changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "it is no JSON"),
        (broken()[:400], "it is no JSON"),
        ("[]", "expected a mapping, got list"),
        ("{}", "settings: Input should be a valid dictionary .*, got None"),
        (broken(settings={"method": "DB"}), "settings.seed: Field required, got {'method': 'DB'}"),
        (broken(result=None), "result: Input should be a valid dictionary .*, got None"),
        (broken(result={"validation": {}}), "result.validation.total: Field required"),
        (broken(result=make_record(shift=20.0)["result"]), r"total.micro: .* less than or equal to 1, got 1.1"),
        (
            broken(result=make_record()["result"] | {"confused": [1]}),
            "result.confused.0: .*dictionary.*, got 1",
        ),
        (
            broken(result=make_record()["result"] | {"test_by_instance": 3}),
            "test_by_instance: .*dictionary, got 3",
        ),
    ],
)
def test_a_broken_record_is_named_and_the_others_are_kept(tmp_path, warnings, content, message):
    write_records(tmp_path, [make_record("BCE")])
    (tmp_path / "records" / "broken.json").write_text(content)
    runs = read_runs([tmp_path])
    assert [run.method for run in runs] == ["BCE"]
    assert len(warnings) == 1
    assert re.search(rf"broken.json: left out, .*{message}", warnings[0])


def test_the_same_run_twice_counts_once(tmp_path, warnings):
    write_records(tmp_path / "a", [make_record("BCE") | {"status": "running"}, make_record("DB")])
    write_records(tmp_path / "b", [make_record("BCE"), make_record("DB", shift=1.0)])
    runs = read_runs([tmp_path, tmp_path / "a"])
    assert sorted((run.method, run.result is not None) for run in runs) == [("BCE", True), ("DB", True)]
    assert len(warnings) == 1 and "has the same settings" in warnings[0]


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    write_corpus_figures(make_corpus(), folder)
    running = make_record("BCE", 7) | {"status": "running", "epochs": [{"number": 1, "micro_f1": 0.5}], "result": None}
    write_records(folder, [*all_records(), running])
    return folder


@pytest.mark.slow
def test_whole_report(run_folder, tmp_path, capsys):
    output = tmp_path / "report"
    assert make_report.main([str(run_folder), "--output", str(output)]) == 0
    assert capsys.readouterr().err == ""
    text = unpadded((output / "report.md").read_text())
    assert "Not finished: BCE seed 7 (1 epochs, best validation micro-F1 50.00)." in text
    assert "| Reuters-21578, TF-IDF features, paper convention | 7 of 7 | - | 1.00 | 1.00 | 1.00 |" in text
    for link in re.findall(r"\]\((.*?)\)", text):
        assert (output / link).stat().st_size > 5000
    latex = (output / "report.tex").read_text()
    assert sorted(path.stem for path in output.rglob("*.tex")) == [
        *("ablation", "claims", "confused", "order", "overview", "report", "runs", "table1", "table2", "table3")
    ]
    for name in re.findall(r"\\input\{(.*?)\}", latex):
        part = (output / f"{name}.tex").read_text()
        unescaped = part.replace(r"\{", "").replace(r"\}", "")
        assert unescaped.count("{") == unescaped.count("}")
        lengths = {line.replace(r"\&", "").count("&") for line in part.splitlines() if line.endswith(r"\\")}
        assert len(lengths) == 1
    for name in re.findall(r"includegraphics\[.*?\]\{(.*?)\}", latex):
        assert (output / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    row = json.loads((output / "report.json").read_text())["groups"][0]["rows"]["DB"]
    assert row["by_label_frequency"]["ours"]["tail"]["micro"]["mean"] == pytest.approx(48.89)
    assert row["by_label_frequency"]["paper"]["tail"]["micro"] == 48.89
    before = {path: path.read_bytes() for path in output.rglob("*.*")}
    assert make_report.main([str(run_folder), "--output", str(output)]) == 0
    assert {path: path.read_bytes() for path in output.rglob("*.*")} == before


def test_report_without_corpus_figures_says_so(run_folder, tmp_path, capsys):
    (run_folder / "label_counts.npz").write_bytes(b"PK broken")
    assert make_report.main([str(run_folder), "--output", str(tmp_path / "report")]) == 0
    warned = capsys.readouterr().err
    assert "label_counts.npz cannot be read" in warned
    assert "no corpus.json, so no Table 1" in warned
    assert "| DB | " in unpadded((tmp_path / "report" / "report.md").read_text())


@pytest.mark.slow
def test_report_of_a_corpus_alone_and_of_unfinished_runs(tmp_path):
    write_corpus_figures(make_corpus(fingerprint="another", name="Another", paper=None), tmp_path / "a")
    write_records(tmp_path / "b", [make_record() | {"status": "running"}])
    assert make_report.main([str(tmp_path), "--output", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text()
    assert "## Another" in text and "Not finished: DB seed 0 (0 epochs)." in text


def test_nothing_to_report(tmp_path, capsys):
    assert make_report.main([str(tmp_path), "--output", str(tmp_path / "report")]) == 1
    assert "no record below" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        make_report.main([str(tmp_path / "nowhere"), "--output", str(tmp_path)])
    assert stopped.value.code == 2
    assert "expected a folder, got" in capsys.readouterr().err


def test_a_report_that_cannot_be_written(run_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert make_report.main([str(run_folder), "--output", str(tmp_path / "file" / "report")]) == 1
    assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_text_for_the_terminal():
    text = tables_text(all_records(), "reuters")
    assert "Table 2" in text and "Table 3" in text and "7 of 7 of the paper's claims hold" in text
    assert "90.62±1.00/64.47±1.00*" in text and "*: the best" in text and "Bold" not in text
    assert "claims" not in tables_text(all_records(), None)
    assert tables_text([], "reuters") == ""


def test_table_1_beside_what_is_published():
    sizes = corpus_sizes(make_corpus())
    cells = columns(corpus_table(sizes))
    assert (cells["documents", "ours"], cells["documents", "published"]) == ("360", "10,788")
    assert cells["head labels (35 and more training documents)", "published"] == ""
    assert corpus_table(sizes | {"paper": None}).header == ["", "ours"]


def test_what_markdown_and_latex_would_misread_is_escaped():
    table = Table("t", "A & B", "50 % of a_b", ["", "x|y"], [["<b>", f"-1/{bold('2±1')}"]])
    assert "| &lt;b> | -1/**2±1** |" in unpadded(table.markdown()) and "x\\|y" in table.markdown()
    assert r"$<$b$>$ & $-$1/\textbf{2$\pm$1} \\" in table.latex()
    assert r"\caption{A \& B: 50 \% of a\_b}" in table.latex()


def test_conditional_probability_by_label_and_by_block(tmp_path):
    write_corpus_figures(make_corpus(30), tmp_path)
    corpus = read_corpus_figures(tmp_path)
    order = np.argsort(-corpus.counts, kind="stable")
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = (corpus.co_occurrence.toarray() / corpus.counts)[np.ix_(order, order)]
    whole, edges = conditional_probability(corpus, 30)
    np.testing.assert_allclose(whole, expected)
    assert edges.tolist() == list(range(31))
    blocks, edges = conditional_probability(corpus, 7)
    for i in range(7):
        for j in range(7):
            cell = expected[edges[i] : edges[i + 1], edges[j] : edges[j + 1]]
            seen = ~np.isnan(cell)
            assert blocks[i, j] == pytest.approx(cell[seen].mean()) if seen.any() else np.isnan(blocks[i, j])


@pytest.mark.slow
@pytest.mark.parametrize("num_labels", [1, 2, 130, 3000])
@pytest.mark.filterwarnings("error")
def test_pictures_of_any_number_of_labels(tmp_path, num_labels):
    write_corpus_figures(make_corpus(num_labels, head=10, tail=2), tmp_path)
    corpus = read_corpus_figures(tmp_path)
    for name, draw in (("figure2", draw_long_tail), ("figure3", draw_co_occurrence)):
        for path in save(draw(corpus), tmp_path / name):
            assert path.stat().st_size > 3000


def test_a_corpus_without_a_label_in_training_can_be_drawn(tmp_path):
    empty = Split(["text"] * 3, SparseTargets.from_lists([[]] * 3, 2))
    write_corpus_figures(make_corpus(2, train=empty), tmp_path)
    corpus = read_corpus_figures(tmp_path)
    assert corpus.sizes["mu"] is None
    for draw in (draw_long_tail, draw_co_occurrence):
        draw(corpus)
