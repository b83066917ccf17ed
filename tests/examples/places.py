"""Where the tests of the examples find what they run. Importing this module puts the examples on the path."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT / "examples" / "paper"
# Corpora and models beside the checkout, which not every machine has.
SHARED = ROOT.parent / "shared"

sys.path[:0] = [str(folder) for folder in (ROOT / "tests", ROOT / "examples", PAPER)]
