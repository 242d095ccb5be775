"""One self-contained HTML page."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Final

from recurra_training.report.style import DPI

_PIXELS_PER_INCH: Final = 96
"""Of a browser, by definition."""
_STYLE: Final = """
:root { color-scheme: light dark; --ink: #222; --pale: #555; --line: #e6e6e6; --paper: #fff; --code: #f6f6f6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --pale: #a2a8b3; --line: #33373f; --paper: #16181d; --code: #20242b; }
  img { padding: .6rem; border-radius: .4rem; }
}
* { box-sizing: border-box; }
body {
  font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem;
}
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
p.lead { color: var(--pale); margin-top: 0; }
nav { font-size: .9rem; columns: 2; column-gap: 2rem; margin: 1.4rem 0; } nav a { display: block; color: inherit; }
figure { margin: 1rem 0; } figcaption { color: var(--pale); font-size: .9rem; }
img { max-width: 100%; height: auto; background: #fff; }
div.table { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem 1.4rem .25rem 0; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--pale); } .number { text-align: right; } td.number { white-space: nowrap; }
pre { background: var(--code); padding: .8rem 1rem; white-space: pre-wrap; font-size: .85rem; }
"""


@dataclass(slots=True)
class Page:
    """A page that grows from the top; everything on it stands in the one file."""

    title: str
    lead: str = ""
    _parts: list[str] = field(default_factory=list)
    _headings: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """Begin a part."""
        self._headings.append(text)
        self._parts.append(f'<h2 id="part-{len(self._headings)}">{escape(text)}</h2>')

    def text(self, text: str) -> None:
        """A paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> None:
        """Text as it stands."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], *, words: int = 1) -> None:
        """A table; all but the first columns, `words` of them, are numbers."""

        def line(tag: str, cells: Sequence[str]) -> str:
            kinds = ("" if index < words else ' class="number"' for index in range(len(cells)))
            made = (f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True))
            return f"<tr>{''.join(made)}</tr>"

        lines = line("th", header) + "".join(line("td", row) for row in rows)
        self._parts.append(f'<div class="table"><table>{lines}</table></div>')

    def picture(self, path: Path, caption: str = "") -> None:
        """A PNG, as large as it was drawn: so letters are of one size in all of them."""
        png = path.read_bytes()
        width = round(int.from_bytes(png[16:20]) * _PIXELS_PER_INCH / DPI)  # where the format has it
        shown = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        data = base64.b64encode(png).decode("ascii")
        image = f'<img width="{width}" alt="{escape(caption or path.stem)}" src="data:image/png;base64,{data}">'
        self._parts.append(f"<figure>{image}{shown}</figure>")

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_text(
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(self.title)}</title>\n'
            f'<meta name="viewport" content="width=device-width">\n<style>{_STYLE}</style>\n'
            f'<h1>{escape(self.title)}</h1>\n<p class="lead">{escape(self.lead)}</p>\n'
            + self._contents()
            + "\n".join(self._parts)
            + "\n</html>\n",
            encoding="utf-8",
        )

    def _contents(self) -> str:
        """Links to the parts, one after another."""
        links = (f'<a href="#part-{number}">{escape(text)}</a>' for number, text in enumerate(self._headings, 1))
        return f"<nav>{''.join(links)}</nav>\n"
