"""Writes the dashboards as the JSON that Grafana reads: `python -m deploy.grafana.build [FOLDER]`."""

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.model import MODEL
from deploy.grafana.overview import OVERVIEW
from deploy.grafana.process import PROCESS
from deploy.grafana.sessions import SESSIONS

BOARDS = (OVERVIEW, MODEL, SESSIONS, PROCESS)


def main(folder: Path) -> None:
    """Write every dashboard into the folder, as `<uid>.json`."""
    for board in BOARDS:
        text = JSONEncoder(indent=2, sort_keys=True).encode(board.build())
        (folder / f"{board.uid}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("dashboards"))
