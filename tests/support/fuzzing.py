"""How much is thrown at the edges: a little in every run of the tests, as much as wanted by `make fuzz`."""

import os
from typing import Final

CASES: Final = int(os.environ.get("FUZZ", "300"))
"""Random cases of each kind."""
