"""What docs/raw-stubs.md shows, ready to be used."""

import re
from pathlib import Path
from typing import Any

DOCUMENT = (Path(__file__).parents[2] / "docs" / "raw-stubs.md").read_text()
CODE, EXAMPLE = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)

_names: dict[str, Any] = {}
exec(compile(CODE, "docs/raw-stubs.md", "exec"), _names)  # noqa: S102 - our own page
SteppedOnce: Any = _names["SteppedOnce"]
Refused: Any = _names["Refused"]
