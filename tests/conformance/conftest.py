"""What the suite of the store is pointed at; its support modules are found whatever folder the tests are run from."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytest.register_assert_rewrite("tenure.testing.store_suite", "tenure.testing.provider_suite")
