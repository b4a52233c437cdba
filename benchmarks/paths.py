"""Makes the helper modules of the tests importable, which write full-size checkpoints here too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
