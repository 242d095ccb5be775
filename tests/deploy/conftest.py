"""What several tests of the deployment use; and where an expectation fails, pytest tells with which values."""

import pytest

from tests.deploy.manifests import Resources, build

pytest.register_assert_rewrite("tests.deploy.expected")


@pytest.fixture(scope="session")
def resources() -> Resources:
    """What is in deploy/kubernetes."""
    return build()
