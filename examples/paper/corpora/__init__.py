"""Multi-label text corpora: Reuters, PubMed from a BioASQ file, files of one's own, generated ones."""
