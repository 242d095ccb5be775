"""Where an expectation fails, pytest tells with which values."""

import pytest

pytest.register_assert_rewrite("tests.deploy.expected")
