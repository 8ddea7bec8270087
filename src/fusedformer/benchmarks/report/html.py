"""A report as one HTML file that needs no other: tables as text, pictures inside it, no script."""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from fusedformer.benchmarks.report.tables import Table

LONG_TABLE = 30  # lines, past which a table is folded
SHORT_CELL = 24  # characters, up to which a cell stays on one line: a figure with its interval

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.3rem; border-bottom: 1px solid #bbb; margin-top: 2.5rem; } h3 { font-size: 1.05rem; }
nav ul { padding-left: 1.2rem; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; } figcaption { color: #444; font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #ccc; padding: .2rem .5rem; text-align: left; vertical-align: top; }
th { background: #f0f0f0; white-space: nowrap; }
td.short { white-space: nowrap; }
td.bad { background: #fdb863; font-weight: bold; } td.good { background: #b2abd2; }
summary { cursor: pointer; font-weight: bold; margin: .8rem 0; }
"""  # noqa: E501
BAD, GOOD = ("loss", "wrong", "failed", "out of memory"), ("win",)  # the colours of the map of duels


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a report with a title of its own."""

    title: str
    tables: Sequence[Table] = field(default_factory=tuple)
    pictures: Sequence[Picture] = field(default_factory=tuple)


def render(title: str, sections: Sequence[Section]) -> str:
    """The whole file."""
    links = "".join(f'<li><a href="#s{i}">{escape(one.title)}</a></li>' for i, one in enumerate(sections))
    body = "\n".join(_section(one, f"s{i}") for i, one in enumerate(sections))
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n<nav><ul>{links}</ul></nav>\n{body}\n</body>\n</html>\n"
    )


def markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The same as markdown, whose pictures are links from `folder`."""
    parts = [f"# {title}\n"]
    for section in sections:
        parts.append(f"# {section.title}\n")
        parts += [f"![{one.caption}]({one.path.relative_to(folder).as_posix()})\n" for one in section.pictures]
        parts += [table.markdown() for table in section.tables if table.lines]
    return "\n".join(parts)


def _section(section: Section, anchor: str) -> str:
    first, *rest = [_table(table) for table in section.tables] or [""]
    title = f'<section id="{anchor}">\n<h2>{escape(section.title)}</h2>'
    return "\n".join(filter(None, [title, first, *map(_picture, section.pictures), *rest, "</section>"]))


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    caption = escape(picture.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
    )


def _table(table: Table) -> str:
    if not table.lines:
        return ""
    rows = [_line("th", table.columns), *(_line("td", line) for line in table.lines)]
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    text = f'<div class="wide"><table>{"".join(rows)}</table></div>{notes}'
    title = escape(table.title)
    if len(table.lines) > LONG_TABLE:
        told = escape(" ".join(table.notes[:1]))
        return f"<details><summary>{title}: {len(table.lines)} lines. {told}</summary>{text}</details>"
    return f"<h3>{title}</h3>{text}"


def _line(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag}{_class(cell)}>{escape(cell)}</{tag}>' for cell in cells)}</tr>\n"


def _class(cell: str) -> str:
    names = {"short": len(cell) <= SHORT_CELL, "bad": cell.startswith(BAD), "good": cell in GOOD}
    chosen = " ".join(name for name, is_so in names.items() if is_so)
    return f' class="{chosen}"' if chosen else ""
