"""A report as one HTML page: style, script, figures and data inside, nothing fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from importlib import resources

from fedvlm.reports import grid
from fedvlm.reports.charts import svg
from fedvlm.reports.charts.chart import GREY, Chart, Series
from fedvlm.reports.charts.looks import Looks
from fedvlm.reports.page.content import Chapter, Example, Examples, Table

_ROWS = 400
"""Largest number of a figure's rows that are shown as a table; the file of a figure has all."""


def page(chapters: Sequence[Chapter], version: str, command: str) -> str:
    """The page of these chapters. `command`: how it was made."""
    title = chapters[0].title if len(chapters) == 1 else f"{len(chapters)} experiments"
    inside = "".join(_chapter(chapter, place) for place, chapter in enumerate(chapters))
    style, script = (resources.files(__package__).joinpath(f"page.{kind}").read_text() for kind in ("css", "js"))
    # By this policy the page can fetch nothing and run no other script, whatever a name in it says.
    own = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{own}'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}: report of fedvlm</title><style>{style}</style></head>\n<body>"
        '<a class="skip" href="#report">Skip to the report</a>'
        f"<header><h1>fedvlm report</h1>{_contents(chapters)}{_tools(chapters)}</header>\n"
        f'<main id="report">{inside}</main>\n'
        f"<footer><p>Made by fedvlm {escape(version)} from the folders alone: "
        f"<code>{escape(command)}</code></p></footer>"
        f"<script>{script}</script></body></html>\n"
    )


def _contents(chapters: Sequence[Chapter]) -> str:
    """Links to the chapters, if there are several."""
    if len(chapters) == 1:
        return ""
    links = "".join(
        f'<li><a href="#chapter-{place}">{escape(one.title)}</a></li>' for place, one in enumerate(chapters)
    )
    return f'<nav aria-label="Experiments"><ul>{links}</ul></nav>'


def _tools(chapters: Sequence[Chapter]) -> str:
    """Choice of a method and a client that stand out in all figures. The script shows it; without one it stays away."""
    marks = [mark for one in chapters for chart in one.charts for panel in chart.panels for mark in panel.marks]
    parts = []
    for name, key, found in (
        ("method", "m", {mark.method for mark in marks} | {m for one in chapters for m in one.looks}),
        ("client", "c", {mark.client for mark in marks}),
    ):
        options = "".join(f"<option>{escape(one)}</option>" for one in sorted(found - {""}, key=_natural))
        if options:
            parts.append(
                f'<label>{name} <select data-picks="{key}"><option value="">all</option>{options}</select></label>'
            )
    clear = '<button type="button" id="clear">show all alike</button>'
    words = f"<span>Highlight</span>{''.join(parts)}{clear}"
    return f'<div class="tools" role="group" aria-label="Highlight" hidden>{words}</div>'


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (1 << 60, name)


def _chapter(chapter: Chapter, place: int) -> str:
    key = f"chapter-{place}"
    lead = "".join(f"<p>{escape(line)}</p>" for line in [" ".join(chapter.lead)])
    warnings = "".join(f'<p class="warning">{escape(line)}</p>' for line in chapter.warnings)
    tables = "".join(_table(one, f"{key}-table-{n}", chapter.looks) for n, one in enumerate(chapter.tables))
    charts = "".join(_chart(one, f"{key}-figure-{n}", chapter.looks) for n, one in enumerate(chapter.charts))
    later = "".join(_table(one, f"{key}-later-{n}", chapter.looks) for n, one in enumerate(chapter.later))
    folder = f'<p class="folder"><code>{escape(chapter.folder)}</code></p>' if chapter.folder else ""
    return (
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{escape(chapter.title)}</h2>'
        f'{folder}<div class="lead">{lead}</div>{warnings}{tables}{charts}'
        f"{_examples(chapter.examples, key) if chapter.examples else ''}{later}{_settings(chapter, key)}</section>"
    )


def _table(table: Table, key: str, looks: Looks) -> str:
    if not table.rows:
        return ""
    best = _best(table) if table.methods else set()
    rows = []
    for number, (name, *cells) in enumerate(table.rows):
        method = name.removesuffix("*")
        swatch = _swatch(looks[method].dot) if table.methods and method in looks else ""
        told = f' data-m="{escape(method)}"' if table.methods else ""
        body = "".join(
            f"<td{' class=best' if (number, column) in best else ''}>{escape(cell)}</td>"
            for column, cell in enumerate(cells)
        )
        rows.append(f'<tr{told}><th scope="row">{swatch}{escape(name)}</th>{body}</tr>')
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads) if any(table.heads) else ""
    about = "".join(f"<li>{escape(line)}</li>" for line in table.about)
    kind = "words" if table.words else "sortable" if len(table.rows) > 1 else "plain"
    return (
        f'<h3 id="{key}">{escape(table.title)}</h3>'
        f'<div class="wide" role="region" tabindex="0" aria-labelledby="{key}"><table class="{kind}">'
        f"{f'<thead><tr>{heads}</tr></thead>' if heads else ''}<tbody>{''.join(rows)}</tbody></table></div>"
        + (f'<ul class="notes">{about}</ul>' if about else "")
    )


_LOW = ("ECE", "bytes", "up B", "train s", "reached", "weight")
"""Columns in which the highest value is not the best one."""


def _best(table: Table) -> set[tuple[int, int]]:
    """Places of the highest accuracies: row and column without the names."""
    found: set[tuple[int, int]] = set()
    if len(table.rows) < 2 or table.name not in ("accuracy", "local", "base", "novel", "hm", "tuned"):
        return found
    for column, head in enumerate(table.heads[1:]):
        values = {
            row: float(cells[column + 1].split()[0])
            for row, cells in enumerate(table.rows)
            if head not in _LOW and _number(cells[column + 1])
        }
        found |= {(row, column) for row, value in values.items() if value == max(values.values())}
    return found


def _number(cell: str) -> bool:
    try:
        float(cell.split()[0])
    except (ValueError, IndexError):
        return False
    return True


def _swatch(colour: int) -> str:
    return f'<i class="swatch {"grey" if colour == GREY else f"c{colour}"}" aria-hidden="true"></i>'


def _chart(chart: Chart, key: str, looks: Looks) -> str:
    # A grid may be wider than the screen; what scrolls can be reached with the keyboard.
    scrolls = f' role="region" tabindex="0" aria-label="{escape(chart.title)}"' if chart.kind == "cells" else ""
    panels = "".join(
        f'<div class="panel" style="--wide:{panel.size[0]}">{f"<h4>{escape(panel.title)}</h4>" if panel.title else ""}'
        f"{svg.draw(panel, f'{key}-{number}', chart.title)}</div>"
        for number, panel in enumerate(chart.panels)
    )
    return (
        f'<figure class="{chart.kind}" aria-labelledby="{key}" aria-describedby="{key}-about">'
        f'<h3 id="{key}">{escape(chart.title)}</h3>'
        f'<figcaption id="{key}-about">{escape(chart.about)}</figcaption>{_legend(chart.legend, looks)}'
        f'<div class="panels"{scrolls}>{panels}</div>{_data(chart, key)}</figure>'
    )


def _legend(legend: Sequence[Series], looks: Looks) -> str:
    """Entries; those of methods are buttons that make the method stand out."""
    if not legend:
        return ""
    entries = []
    for one in legend:
        line = f'<svg class="key" viewBox="0 0 22 8" aria-hidden="true"><path class="line c{one.colour}" d="M0 4H22"'
        shown = f'{line} stroke-dasharray="{svg.DASHES[one.dashes]}"/></svg>' if one.dashes else _swatch(one.colour)
        inside = f"{shown}{escape(one.name)}"
        if one.name in looks:
            entries.append(
                f'<li><button type="button" aria-pressed="false" data-m="{escape(one.name)}">{inside}</button></li>'
            )
        else:
            entries.append(f"<li>{inside}</li>")
    return f'<ul class="legend">{"".join(entries)}</ul>'


def _data(chart: Chart, key: str) -> str:
    """The figure's data: as a table, and whole as a file inside the page."""
    if not chart.data:
        return ""
    heads = list(dict.fromkeys(name for record in chart.data for name in record))
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(str(record.get(head, '')))}</td>" for head in heads) + "</tr>"
        for record in chart.data[:_ROWS]
    )
    more = f"<p>The first {_ROWS} of {len(chart.data):,} rows.</p>" if len(chart.data) > _ROWS else ""
    columns = "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
    file = download(f"{chart.name}.csv", "text/csv", grid.csv(chart.data))
    return (
        f"<details><summary>Data of this figure</summary><p>{file}</p>{more}"
        f'<div class="wide" role="region" tabindex="0" '
        f'aria-label="Data: {escape(chart.title)}"><table class="words"><thead><tr>{columns}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></details>"
    )


def download(name: str, kind: str, text: str) -> str:
    """A link that holds a file."""
    whole = base64.b64encode(text.encode()).decode()
    return f'<a download="{escape(name)}" href="data:{kind};charset=utf-8;base64,{whole}">{escape(name)}</a>'


def _settings(chapter: Chapter, key: str) -> str:
    if not chapter.settings:
        return ""
    file = download("settings.toml", "text/plain", chapter.settings)
    return (
        f'<h3 id="{key}-settings">Settings</h3><p>{file}: {escape(chapter.again)}</p>'
        f'<details><summary>All settings</summary><pre tabindex="0">{escape(chapter.settings)}</pre></details>'
    )


def _examples(found: Examples, key: str) -> str:
    """Pictures with what the model says of them."""

    def shown(pictures: Sequence[Example], word: str) -> Iterator[str]:
        for one in pictures:
            says = f"{one.guess} ({100 * one.probability:.0f} %)"
            yield (
                f'<li class="{word}"><img src="{one.image}" alt="{escape(one.label)}, taken for {escape(one.guess)}" '
                f'width="96" height="96"><span>{escape(one.label)}</span><span>{escape(says)}</span></li>'
            )

    wrong, right = "".join(shown(found.wrong, "wrong")), "".join(shown(found.right, "right"))
    return (
        f'<figure aria-labelledby="{key}-examples"><h3 id="{key}-examples">Images</h3>'
        f"<figcaption>Test images of client {escape(found.client)} with what its model of {escape(found.method)} says: "
        f"the surest of {found.counts[1]:,} wrong and {found.counts[0]:,} right answers; probabilities are not "
        "calibrated. They were asked for: whoever gets this page sees them.</figcaption>"
        f'<h4>Wrong</h4><ul class="images">{wrong or "<li>none</li>"}</ul>'
        f'<h4>Right</h4><ul class="images">{right or "<li>none</li>"}</ul></figure>'
    )
