"""What the suite of the store is pointed at."""

import pytest

pytest.register_assert_rewrite("tenure.testing.store_suite")
