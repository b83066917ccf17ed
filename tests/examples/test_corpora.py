"""Corpora of the examples: BioASQ files, files of one's own, the cache, the partition, bad input."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections import Counter

import numpy as np
import pytest

for package in ("datasets", "ijson", "scipy", "sklearn"):
    pytest.importorskip(package)

from corpora import document_cache  # noqa: E402
from corpora.bioasq import YEARS, load_bioasq, read_articles  # noqa: E402
from corpora.corpus import CorpusError, Partition  # noqa: E402
from corpora.generated import generate_corpus, write_bioasq  # noqa: E402
from corpora.table_files import TableOptions, load_table_files  # noqa: E402
from files import CacheError, cached  # noqa: E402
from places import SHARED  # noqa: E402
from progress import progress  # noqa: E402

PARTITION = Partition(validation=2, test=2, seed=0, min_label_count=1)
DEEP = "[" * 100_000 + "]" * 100_000


def article(number=1, **changes):
    fields = {
        "pmid": str(number),
        "title": f"Title {number}.",
        "abstractText": f"Abstract {number}.",
        "meshMajor": ["humans", f"heading {number % 3}"],
        "year": "2020",
        "journal": "J",
    }
    return {key: value for key, value in (fields | changes).items() if value is not ...}


def write_articles(path, articles):
    path.write_text(json.dumps({"articles": articles}), encoding="utf-8")
    return path


class Loader:
    """Loads with a cache in the test's folder; ``warnings`` has what was said."""

    def __init__(self, folder):
        self.folder = folder
        self.warnings = []

    def bioasq(self, file, years=None, partition=PARTITION, encoding="utf-8"):
        return load_bioasq(file, years, encoding, partition, self.folder / "cache")

    def table(self, files, options=None, partition=PARTITION):
        return load_table_files(files, options or TableOptions(), partition, self.folder / "cache", head=3, tail=1)


@pytest.fixture
def load(tmp_path, monkeypatch):
    loader = Loader(tmp_path)
    monkeypatch.setattr(progress, "warn", loader.warnings.append)
    return loader


def texts_and_labels(corpus):
    """All documents as {text: label names}."""
    return {
        text: {corpus.label_names[label] for label in ids}
        for split in corpus.splits.values()
        for text, ids in zip(split.texts, split.targets.to_lists(), strict=True)
    }


@pytest.mark.parametrize("gzipped", [False, True])
def test_bioasq_file(load, tmp_path, gzipped):
    file = write_articles(tmp_path / "articles.json", [article(number) for number in range(12)])
    if gzipped:
        file.write_bytes(gzip.compress(file.read_bytes()))
    corpus = load.bioasq(file)
    assert [len(split) for split in corpus.splits.values()] == [8, 2, 2]
    assert corpus.label_names == ["heading 0", "heading 1", "heading 2", "humans"]
    documents = texts_and_labels(corpus)
    assert documents["Title 7. Abstract 7."] == {"humans", "heading 1"}
    assert len(documents) == 12
    assert corpus.paper == "pubmed"
    assert not corpus.remarks


def test_bioasq_years_and_what_is_left_out(load, tmp_path):
    articles = [article(number) for number in range(8)]
    articles += [
        article(10, year=2021),
        article(11, year="1999"),
        article(12, year=""),
        article(13, abstractText=""),
        article(14, abstractText=...),
        article(15, abstractText=None, title=None),
        article(16, meshMajor=[]),
        article(17, meshMajor=...),
        article(18, meshMajor=["humans", "humans"], title="half a pair \ud800"),
    ]
    corpus = load.bioasq(write_articles(tmp_path / "articles.json", articles), YEARS)
    assert set(corpus.remarks) == {
        "1 articles of other years, left out",
        "1 articles without a year, left out",
        "2 articles without abstract, of which the title alone is used",
        "1 articles without title and abstract, left out",
        "2 articles without MeSH headings, left out",
    }
    documents = texts_and_labels(corpus)
    assert len(documents) == 12
    assert documents["Title 13."] == {"humans", "heading 1"}
    assert documents["half a pair ? Abstract 18."] == {"humans"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[: len(raw) // 2], "broken or truncated after article"),
        (lambda raw: raw[:-2], "broken or truncated after article 8 (pmid 7)"),
        (lambda raw: raw.replace(b'"pmid": "4"', b'"pmid": 4"'), "broken or truncated after article 4 (pmid 3)"),
        (lambda raw: gzip.compress(raw)[:-9], "broken or truncated"),
        (lambda raw: gzip.compress(raw)[:6], "broken or truncated at its beginning"),
        (lambda raw: raw.replace(b"Title 5", b"T\xefitle 5"), "broken or truncated after article 5 (pmid 4)"),
        (lambda raw: b"", "broken or truncated at its beginning"),
        (lambda raw: b"PK\x03\x04 a zip", "broken or truncated at its beginning"),
        (lambda raw: b'{"documents": []}', 'expected {"articles": [...]}, got no article'),
        (lambda raw: b'{"articles": []}', "got no article"),
        (lambda raw: b'{"articles": [3]}', "article 1: expected an object, got"),
        (
            lambda raw: b'{"articles": [{"pmid": "9", "title": "a", "meshMajor": "humans"}]}',
            "meshMajor: expected a list",
        ),
        (lambda raw: b'{"articles": [{"pmid": "9", "title": 3, "meshMajor": ["a"]}]}', "title: expected a string"),
        (
            lambda raw: b'{"articles": [{"pmid": "9", "title": "a", "meshMajor": []}]}',
            "no document is left (1 articles",
        ),
    ],
)
def test_broken_bioasq_file(load, tmp_path, change, message):
    file = write_articles(tmp_path / "articles.json", [article(number) for number in range(8)])
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(CorpusError) as error:
        load.bioasq(file)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert not list((tmp_path / "cache").glob("documents-*[!k]")), "a part of a cache was left"


def test_bioasq_in_latin_1(load, tmp_path):
    file = tmp_path / "articles.json"
    articles = [article(number, title=f"Ménière {number}") for number in range(8)]
    file.write_bytes(json.dumps({"articles": articles}, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(CorpusError, match="invalid bytes in UTF8 string; another --encoding may be right"):
        load.bioasq(file)
    corpus = load.bioasq(file, encoding="latin-1")
    assert "Ménière 3 Abstract 3." in texts_and_labels(corpus)


def test_labels_of_few_training_documents_and_of_test_only(load, tmp_path):
    rows = [{"text": f"text {k}", "labels": ["common"], "split": "train"} for k in range(6)]
    rows[0]["labels"] = ["common", "rare"]
    rows += [{"text": "a", "labels": ["common", "unseen"], "split": "test"}]
    rows += [{"text": "b", "labels": ["unseen"], "split": "validation"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    corpus = load.table({"": file}, partition=Partition(2, 2, 0, min_label_count=2))
    assert corpus.label_names == ["common"]
    assert corpus.remarks == [
        "2 labels with fewer than 2 training documents dropped, 1 of them in validation or test only",
        "1 documents are left without any label; they count as negatives of all",
    ]
    assert [len(split) for split in corpus.splits.values()] == [6, 1, 1]
    assert corpus.statistics.counts.tolist() == [6]
    every = load.table({"": file}, partition=Partition(2, 2, 0, min_label_count=0))
    assert every.label_names == ["common", "rare", "unseen"]


def test_partition_is_drawn_by_the_seed(load, tmp_path):
    file = write_articles(tmp_path / "articles.json", [article(number) for number in range(40)])
    first, again, other = (load.bioasq(file, partition=Partition(4, 0.2, seed, 1)) for seed in (0, 0, 1))
    assert [len(split) for split in first.splits.values()] == [28, 4, 8]
    assert list(first.test.texts) == list(again.test.texts)
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert list(first.test.texts) != list(other.test.texts)


@pytest.mark.parametrize(
    ("partition", "message"),
    [
        (Partition(5000, 5000, 0, 5), "--test-size: expected one that leaves training documents, got 5,000 of 8"),
        (Partition(7, 2, 0, 1), "--validation-size: expected one that leaves training documents, got 7 of 6"),
        (Partition(2, 0.01, 0, 1), "--test-size: expected one that leaves training documents, got 0 of 8"),
        (Partition(4, 3, 0, 1), "train: expected at least 2 documents, got 1 of 8"),
        (Partition(2, 2, 0, 50), "no label has 50 training documents or more, of 4 labels"),
    ],
)
def test_partition_that_cannot_be_filled(load, tmp_path, partition, message):
    file = write_articles(tmp_path / "articles.json", [article(number) for number in range(8)])
    with pytest.raises(CorpusError, match=message):
        load.bioasq(file, partition=partition)


def test_table_files_of_all_forms_give_the_same_corpus(load, tmp_path):
    rows = [(f'text "{k}",\nsecond line', [f"label {k % 3}", "all"]) for k in range(9)]
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\n\n".join(json.dumps({"text": text, "labels": labels}) for text, labels in rows))
    tables = {}
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        tables[suffix] = tmp_path / f"rows{suffix}"
        quoted = (f'"{text.replace(chr(34), 2 * chr(34))}"{delimiter}{"; ".join(labels)}' for text, labels in rows)
        header = "\ufeff" + delimiter.join(("text", "labels"))
        tables[suffix].write_text("\n".join((header, *quoted)), encoding="utf-8")
    corpora = [load.table({"": file}) for file in (lines, *tables.values())]
    assert len({corpus.fingerprint for corpus in corpora}) == 1
    assert texts_and_labels(corpora[0]) == {text: set(labels) for text, labels in rows}
    assert corpora[0].paper is None


def test_table_files_with_given_parts(load, tmp_path):
    files = {}
    for part, size in (("", 6), ("test", 3)):
        files[part] = tmp_path / f"{part or 'train'}.jsonl"
        files[part].write_text("\n".join(json.dumps({"t": f"{part} {k}", "l": "x|y"}) for k in range(size)))
    corpus = load.table(files, TableOptions(text="t", labels="l", separator="|"))
    assert [len(split) for split in corpus.splits.values()] == [4, 2, 3]
    assert all(text.startswith("test") for text in corpus.test.texts)
    assert corpus.label_names == ["x", "y"]
    assert corpus.instance_groups == {"<=2": (0, 2), ">=3": (3, None)}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a", "labels": []}\n{"text": "b"', "a.jsonl, line 2: expected a JSON object"),
        ("a.jsonl", "[1]", "line 1: expected a JSON object a line, got list"),
        ("a.jsonl", '{"text": "a"}', "line 1: expected a field 'labels', got text"),
        ("a.jsonl", '{"text": 3, "labels": []}', "line 1: text: expected a string, got int"),
        ("a.jsonl", '{"text": "a", "labels": {"b": 1}}', "line 1: labels: expected a list of names"),
        ("a.jsonl", '{"text": "a", "labels": [], "split": "dew"}', "line 1: split: expected one of train"),
        ("a.csv", "text,label\na,b", "expected the columns 'text' and 'labels', got ['text', 'label']"),
        ("a.csv", "text,labels\na,b,c", "line 2: expected 2 fields"),
        ("a.csv", 'text,labels\n"a,b', "unexpected end of data"),
        ("a.csv", "", "expected the columns 'text' and 'labels', got none"),
        ("a.jsonl", '{"text": "a", "labels": []}\n' * 8, "no document has a label"),
        ("a.csv", b"text,labels\n\xff,a", "expected UTF-8, got another encoding"),
        ("a.txt", "a", "expected a file ending in one of .jsonl"),
        ("a.jsonl", "", "no document is left (the file has none)"),
        ("a.csv", "text,labels,text\na,b,c", "expected different columns, got 'text' more than once"),
        ("a.csv", "text,labels\n\na,b,c", "line 3: expected 2 fields, got 3"),
        (
            "a.jsonl",
            '{"text": "a", "labels": ["b\\ud800"]}',
            "line 1: labels: expected characters, got half a surrogate pair",
        ),
        (
            "a.jsonl",
            '{"text": "a", "labels": []}\n{"text": ' + DEEP + "}",
            "line 2: expected strings and lists of strings",
        ),
        (
            "a.jsonl",
            '{"text": "a", "labels": ' + "[" * 900 + "]" * 900 + "}",
            "line 1: labels: expected a list of names",
        ),
        ("a.jsonl", '{"text": " ", "labels": []}', "no document is left (1 documents without text, left out)"),
    ],
)
def test_bad_table_files(load, tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorpusError) as error:
        load.table({"": file})
    assert message in str(error.value)


def test_table_files_without_a_header(load, tmp_path):
    rows = [(f"text {k}", f"label {k % 3};all", "test" if k < 2 else "") for k in range(8)]
    named, bare, tabs = (tmp_path / name for name in ("named.csv", "bare.csv", "bare.tsv"))
    named.write_text("\n".join(map(",".join, (("text", "labels", "split"), *rows))))
    bare.write_text("\n".join(map(",".join, rows)))
    tabs.write_text("\n".join(f"{labels}\t{split}\t{text}" for text, labels, split in rows))
    first, second = TableOptions("1", "2", "3", header=False), TableOptions("3", "1", "2", header=False)
    corpora = [load.table({"": named}), load.table({"": bare}, first), load.table({"": tabs}, second)]
    assert len({corpus.fingerprint for corpus in corpora}) == 1
    assert [len(split) for split in corpora[1].splits.values()] == [4, 2, 2]
    with pytest.raises(CorpusError, match=r"expected the columns '1' and '9', got \['1', '2', '3'\]"):
        load.table({"": bare}, TableOptions("1", "9", header=False))
    with pytest.raises(CorpusError, match="--no-header is for files whose first line is a document"):
        load.table({"": bare})
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"1": "a", "2": "b"}')
    with pytest.raises(CorpusError, match="--no-header: expected a CSV or TSV file"):
        load.table({"": lines}, first)


def test_fields_that_begin_with_a_quote(load, tmp_path):
    file = tmp_path / "quotes.tsv"
    texts = [
        f'"{word}" he said' if word != "four" else '"four' for word in ("one", "two", "three", "four", "five", "six")
    ]
    file.write_text("text\tlabels\n" + "\n".join(f"{text}\tspeech" for text in texts))
    with pytest.raises(CorpusError, match=r"quotes\.tsv, line 2: .*; --quoting none takes quotes as text"):
        load.table({"": file})
    corpus = load.table({"": file}, TableOptions(quoting="none"))
    assert texts_and_labels(corpus) == {text: {"speech"} for text in texts}


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "rows.tsv.gz", "ROWS.CSV.GZ", "packed.csv"])
def test_gzipped_table_files(load, tmp_path, name):
    rows = [(f"text {k}", f"label {k % 3};all") for k in range(8)]
    plain = tmp_path / "plain.csv"
    plain.write_text("\n".join(map(",".join, (("text", "labels"), *rows))))
    content = plain.read_bytes()
    if "json" in name:
        content = "\n".join(json.dumps({"text": text, "labels": labels}) for text, labels in rows).encode()
    elif "tsv" in name:
        content = content.replace(b",", b"\t")
    file = tmp_path / name
    file.write_bytes(gzip.compress(content))
    corpus = load.table({"": file})
    assert corpus.fingerprint == load.table({"": plain}).fingerprint
    assert corpus.name == name.partition(".")[0]
    file.write_bytes(gzip.compress(content)[:-9])
    with pytest.raises(CorpusError, match="cannot be read: Compressed file ended"):
        load.table({"": file})


def test_deeply_nested_bioasq_file(load, tmp_path):
    file = tmp_path / "deep.json"
    for where in (
        f'"meshMajor": {DEEP}',
        f'"meshMajor": ["a"]}}, {{"title": "b\\\\", "other": {DEEP.replace("[", "[[")}',
    ):
        file.write_text(f'{{"articles": [{{"pmid": "1", "title": "a", {where}}}]}}')
        with pytest.raises(CorpusError, match=r"deep\.json: broken .*: nested in more than 500 brackets"):
            load.bioasq(file)
    headings = "[" * 400 + "]" * 400
    file.write_text(f'{{"articles": [{{"pmid": "1", "title": "a", "meshMajor": {headings}}}]}}')
    with pytest.raises(CorpusError, match=r"article 1 \(pmid 1\): meshMajor: expected a list of strings"):
        load.bioasq(file)
    brackets = [article(number, title="[{" * 600 + '\\"[' * number) for number in range(80)]
    assert len(texts_and_labels(load.bioasq(write_articles(file, brackets)))) == 80


def test_half_a_surrogate_pair_in_a_text(load, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": f"text {k} \ud800", "labels": ["a"]}) for k in range(8)))
    corpus = load.table({"": file})
    assert corpus.remarks == ["8 documents with half a surrogate pair, which is replaced by a question mark"]
    assert "text 3 ?" in texts_and_labels(corpus)
    printable = load.bioasq(write_articles(tmp_path / "a.json", [article(k, meshMajor=["b\ud800"]) for k in range(8)]))
    "".join(printable.label_names).encode("utf-8")


def test_file_whose_name_is_no_text(load, tmp_path):
    file = tmp_path / os.fsdecode(b"na\xefme.jsonl")
    file.write_text("\n".join(json.dumps({"text": f"text {k}", "labels": ["a"]}) for k in range(8)))
    assert load.table({"": file}).name == "na?me"


def test_missing_file(load, tmp_path):
    with pytest.raises(CorpusError, match="cannot be read: No such file"):
        load.bioasq(tmp_path / "none.json")


def test_documents_are_parsed_once(load, tmp_path, monkeypatch):
    file = write_articles(tmp_path / "articles.json", [article(number) for number in range(8)])
    first = load.bioasq(file)

    def parse_again(*_):
        raise AssertionError("parsed again")

    monkeypatch.setattr("corpora.bioasq.read_articles", parse_again)
    second = load.bioasq(file, partition=PARTITION)
    assert texts_and_labels(first) == texts_and_labels(second)
    assert first.fingerprint == second.fingerprint
    assert not load.warnings


def test_cache_is_rebuilt_with_a_message(load, tmp_path, monkeypatch):
    file = write_articles(tmp_path / "articles.json", [article(number) for number in range(8)])
    load.bioasq(file)
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())

    write_articles(file, [article(number) for number in range(10)])
    assert len(texts_and_labels(load.bioasq(file))) == 10
    assert "was made of another state of its source; it is rebuilt" in load.warnings[-1]

    monkeypatch.setattr(document_cache, "VERSION", 99)
    load.bioasq(file)
    assert "was made by version 2, this is 99; it is rebuilt" in load.warnings[-1]

    arrow = folder / "documents.arrow"
    arrow.write_bytes(arrow.read_bytes()[:100])
    assert len(texts_and_labels(load.bioasq(file))) == 10
    assert "cannot be read" in load.warnings[-1]

    (folder / "made_of.json").write_text("{")
    load.bioasq(file)
    assert "is not complete" in load.warnings[-1]
    assert len(load.warnings) == 4


def test_cache_on_a_full_disk_is_not_there(load, tmp_path, monkeypatch):
    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", no_space)
    file = write_articles(tmp_path / "articles.json", [article(number) for number in range(8)])
    with pytest.raises(CacheError, match="the cache cannot be written: No space left on device"):
        load.bioasq(file)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_resumable_cache_goes_on_with_what_is_there(tmp_path):
    seen = []

    def build(folder):
        seen.append(sorted(path.name for path in folder.iterdir()))
        (folder / "half").touch()
        if len(seen) == 1:
            raise KeyboardInterrupt

    def ask():
        cached(tmp_path / "c", {"version": 1}, build, lambda folder: None, resumable=True)

    with pytest.raises(KeyboardInterrupt):
        ask()
    ask()
    assert seen == [["made_of.json"], ["half", "made_of.json"]]
    assert (tmp_path / "c" / "half").exists()


def test_generated_bioasq_file(load, tmp_path):
    files = [tmp_path / name for name in ("a.json.gz", "b.json")]
    for file in files:
        write_bioasq(file, 3000, 300)
    assert gzip.decompress(files[0].read_bytes()) == files[1].read_bytes()
    corpus = load.bioasq(files[0], YEARS, Partition(200, 200, 0, 5))
    assert [len(split) for split in corpus.splits.values()] == [2600, 200, 200]
    assert corpus.num_labels > 290
    counts = np.sort(corpus.statistics.counts.numpy())[::-1]
    assert counts[0] > 20 * counts[-1]
    assert 8 < len(corpus.train.targets.col) / 2600 < 14


def test_memory_of_reading_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for number in (1000, 6000):
        file = tmp_path / f"{number}.json.gz"
        write_bioasq(file, number, 100)
        tracemalloc.start()
        assert sum(1 for _ in read_articles(file, None, "utf-8", Counter())) == number
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], f"{peaks} bytes"


def test_generated_corpus_has_the_shape_of_reuters():
    corpus = generate_corpus("generated")
    assert [len(split) for split in corpus.splits.values()] == [6769, 1000, 3019]
    assert corpus.num_labels == 90
    documents = [ids for split in corpus.splits.values() for ids in split.targets.to_lists()]
    assert all(documents)
    assert 1.15 < np.mean([len(ids) for ids in documents]) < 1.35  # Reuters: 1.24
    assert all(20 <= mask.sum() <= 45 for mask in corpus.label_groups.values())


def test_generated_corpus_is_deterministic():
    first, second = (generate_corpus("generated", 1000) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != generate_corpus("generated", 1000, seed=1).fingerprint


@pytest.mark.skipif(not (SHARED / "data/bioasq_sample.json.gz").exists(), reason="no sample of BioASQ is at hand")
def test_real_articles(load):
    corpus = load.bioasq(SHARED / "data/bioasq_sample.json.gz", None, Partition(1000, 1000, 0, 2))
    assert [len(split) for split in corpus.splits.values()] == [10380, 1000, 1000]
    assert int(corpus.statistics.counts.min()) == 2
    assert corpus.num_labels > 7000
    assert 0.04 < corpus.statistics.suggest_mu(corpus.train.targets) < 0.07  # the paper's is 0.05
