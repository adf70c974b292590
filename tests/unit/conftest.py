"""What holds for the unit suite: its support modules are found whatever folder the tests are run from."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
