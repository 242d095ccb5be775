"""Writes the dashboards as the JSON that Grafana reads: `python -m deploy.grafana.build [FOLDER]`."""

import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana.overview import overview

DASHBOARDS = (overview,)


def main(folder: Path) -> None:
    """Write every dashboard into the folder, as `<uid>.json`."""
    for build in DASHBOARDS:
        dashboard = build().build()
        # Links to a panel go by its number.
        for number, panel in enumerate(dashboard.panels or (), start=1):
            panel.id_val = number
        text = JSONEncoder(indent=2, sort_keys=True).encode(dashboard)
        (folder / f"{dashboard.uid}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("dashboards"))
