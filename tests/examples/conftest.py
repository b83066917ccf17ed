import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import places  # noqa: F401  it puts the examples on the path
