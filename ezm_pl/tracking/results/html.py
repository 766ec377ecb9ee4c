"""A page in one file: tables, figures as data, style inside; nothing is fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
       max-width: 1120px; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0 0; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem;
     border-bottom: 1px solid #ddd; } h3 { font-size: 1.05rem; margin: 1.2rem 0 .3rem; }
p, ul { max-width: 48rem; } .quiet { color: #555; font-size: .9rem; }
.notice { border-left: 4px solid #D55E00; background: #fdf3ec; padding: .5rem .8rem; max-width: 48rem; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr));
           gap: 1rem; }
figure { margin: 0; break-inside: avoid; } figure img { width: 100%; height: auto; max-width: 560px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th { background: #f5f5f5; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
caption { caption-side: bottom; text-align: left; color: #555; font-size: .85rem; padding-top: .3rem; }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto; font-size: .85rem; }
@media print { body { max-width: none; font-size: 11px; padding: 0; } h2 { break-after: avoid; }
  .figures { grid-template-columns: 1fr 1fr; } tr { break-inside: avoid; }
  th, td { white-space: normal; padding: .15rem .3rem; } pre { white-space: pre-wrap; } }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """The whole document.

    Args:
        title: plain text.
        parts: pieces of HTML, in order.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def heading(text: str, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "") -> str:
    """Plain text; `kind` is `quiet` or `notice`."""
    return f"<p{f' class={kind}' if kind else ''}>{escape(text)}</p>"


def bullets(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>" if texts else ""


def code(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Plain-text cells, the first column to the left, numbers to the right.

    Args:
        head: column names; a line break in one stays.
        rows: as many cells as `head`.
        caption: below it.
    """
    top = "".join(f"<th>{escape(name).replace(chr(10), '<br>')}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    under = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{under}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def figures(pictures: Sequence[tuple[Path, str]]) -> str:
    """SVG files side by side as the width allows.

    Args:
        pictures: (SVG, what it shows in words).
    """
    items = []
    for path, words in pictures:
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        items.append(
            f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(words, quote=True)}"></figure>'
        )
    return f'<div class="figures">{"".join(items)}</div>'
