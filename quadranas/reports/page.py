"""HTML pages: common frame and style, and figures by matplotlib as inline SVG.

A page is self-contained; the same data give the same bytes.
"""

import io
import re
import warnings
from collections.abc import Callable, Container, Mapping, Sequence
from html import escape
from pathlib import Path

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quadranas import __version__
from quadranas.errors import printable_lines
from quadranas.files import write_atomically

BLUE, ORANGE, GREEN, RED, INK = "#2f6fa8", "#d98a1f", "#3f8f5b", "#b3372f", "#24292f"
GREY, PALE, SOFT = "#7d8590", "#a3abb4", "#57606a"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#6f5a86", GREY)
"""Of things that are compared, by their numbers."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "quadranas",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def html_page(title: str, sections: Mapping[str, str], *, before: str = "") -> str:
    """A complete HTML page; control characters in names are escaped.

    Args:
        sections: markup by heading.
        before: markup between the title and the sections.
    """
    body = "\n".join(
        f"<section><h2>{name}</h2>{text}</section>" for name, text in sections.items()
    )
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{before}
{body}
<footer>Written by quadranas {__version__}.</footer>
</main>
</body>
</html>
"""
    return printable_lines(page)


def write_page(path: Path, page: str) -> None:
    """Write a page; unpaired surrogates of names and JSON, which UTF-8 cannot hold, are replaced.

    Raises:
        QuadranasError: it cannot be written.
    """
    write_atomically(path, page.encode("utf-8", "replace"))


def note(text: str) -> str:
    """A paragraph in small print; the text is markup."""
    return f'<p class="note">{text}</p>'


def figure(drawing: str, caption: str) -> str:
    """A drawing with its caption; both are markup."""
    return f"<figure>{scrollable(drawing, 'figure')}<figcaption>{caption}</figcaption></figure>"


def scrollable(markup: str, label: str) -> str:
    """Markup that is scrolled sideways on narrow screens, also by keyboard.

    Args:
        label: what it is, for screen readers.
    """
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">{markup}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Container[int] = ()) -> str:
    """A table; headings and cells are markup.

    Args:
        numbers: the columns that are aligned to the right.
    """

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = [' class="n"' if i in numbers else "" for i in range(len(cells))]
        texts = (f"<{tag}{kind}>{c}</{tag}>" for kind, c in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(texts)}</tr>"

    body = "".join(row(cells, "td") for cells in rows)
    return scrollable(f"<table>{row(head, 'th')}{body}</table>", "table")


def plot(
    name: str,
    title: str,
    draw: Callable[[Axes], None],
    size: tuple[float, float],
    pad: float | None = None,
) -> str:
    """A plot as `<svg>`; `name` makes its ids unique on the page.

    Args:
        pad: points between axes and title; if None, the title is for screen readers only.
    """

    def draw_figure(whole: Figure) -> None:
        axes = whole.add_subplot()
        draw(axes)
        if pad is not None:
            axes.set_title(title, pad=pad)

    return plot_figure(name, title, draw_figure, size)


def plot_figure(
    name: str, title: str, draw: Callable[[Figure], None], size: tuple[float, float]
) -> str:
    """A matplotlib figure as `<svg>`; `name` makes its ids unique on the page."""
    name = re.sub(r"[^A-Za-z0-9._-]", lambda match: f"-{ord(match[0]):x}", name)
    with warnings.catch_warnings(), matplotlib.style.context(["default", STYLE]):
        # The browser chooses the font, which may have more characters than matplotlib's.
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        whole = Figure(figsize=size, layout="constrained")
        draw(whole)
        stream = io.StringIO()
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        whole.savefig(stream, format="svg", metadata=no_metadata)
    # Removes the XML prologue and a style sheet that would apply to the whole page.
    markup = stream.getvalue().partition("</defs>")[2].strip()
    markup = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", markup)
    view = f'viewBox="0 0 {size[0] * 72:g} {size[1] * 72:g}" aria-label="{escape(title)}"'
    namespace = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg class="plot" {view} role="img" {namespace}>{markup}'


CSS = """
:root{--page:#fafbfc;--ink:#24292f;--card:#fff;--line:#e4e7eb;--rule:#eef0f3;--soft:#57606a;
--shade:#f0f2f4;--code:#f6f8fa;--faint:#656d76;--warn:#fdf3df;--edge:#ecd9a9;--blue:#2f6fa8;
--red:#b3372f;--torn:#f9e3e1}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,
-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 16px;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:0 0 12px}
section,.card{background:var(--card);border:1px solid var(--line);border-radius:8px}
section{padding:18px;margin:18px 0}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px}
.card{padding:12px 14px;overflow-wrap:anywhere}
.card b{display:block;font-size:1.5rem;line-height:1.2}
.card span,.card small{display:block}
.card small,.note,figcaption,footer{color:var(--soft);font-size:.86rem;overflow-wrap:anywhere}
.state{background:var(--warn);border:1px solid var(--edge);border-radius:8px;padding:8px 14px}
section>:last-child{margin-bottom:0}
figure{margin:0}
figcaption{margin-top:6px}
.scroll{overflow-x:auto}
.scroll:focus-visible,pre:focus-visible,summary:focus-visible{outline:2px solid var(--blue);
outline-offset:2px}
svg text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif!important}
.plot,.drawing{display:block;width:100%;height:auto;stroke-linejoin:round}
.scroll>.plot,.scroll>.drawing{min-width:680px}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(280px,1fr));gap:14px}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(420px,1fr));gap:14px}
.pairs .scroll>.plot{min-width:0}
.phase{padding:1px 8px;border-radius:4px;color:#24292f}
.stack{display:flex;height:26px;background:var(--shade);border-radius:4px;overflow:hidden}
.stack+table,.stack+.scroll{margin-top:10px}
.bar{height:10px;width:120px}
.bar i{background:var(--blue)}
.key{display:inline-block;width:12px;height:12px;border-radius:3px;margin-right:8px}
table{border-collapse:collapse;font-size:.88rem}
th,td{text-align:left;padding:4px 14px 4px 0;border-bottom:1px solid var(--rule);
white-space:nowrap}
th{color:var(--soft);font-weight:600}
.n{text-align:right;font-variant-numeric:tabular-nums}
.sum td{font-weight:600;border:0}
.blocks{width:100%}
.skipped{color:var(--faint)}
h3{font-size:.95rem;margin:14px 0 6px;overflow-wrap:anywhere}
.sheet{display:flex;flex-wrap:wrap;gap:6px}
.sheet img{border-radius:4px;background:var(--shade)}
.torn{width:96px;height:96px;border-radius:4px;background:var(--torn);color:var(--red);display:flex;
align-items:center;justify-content:center;font-size:.8rem}
.gates{display:flex;gap:14px;align-items:center}
.gate{display:block;flex:none}
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 16px;margin:0;font-size:.9rem}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
pre{overflow-x:auto;background:var(--code);padding:12px;border-radius:6px;font-size:.82rem}
@media(max-width:560px){
dl{grid-template-columns:1fr}dd{margin-bottom:6px}section{padding:14px 12px}
}
@media print{section{break-inside:avoid}}
@media(prefers-color-scheme:dark){
:root{--page:#0d1117;--ink:#e6edf3;--card:#161b22;--line:#30363d;--rule:#262c34;--soft:#9da7b1;
--shade:#262c34;--code:#0d1117;--faint:#8b949e;--warn:#332a12;--edge:#6b5722;--blue:#6cb2f0;
--red:#ff9d95;--torn:#42201d}
svg,.phase,.key,.stack:not(.bar)>i{filter:invert(1) hue-rotate(180deg)}
svg image{filter:invert(1) hue-rotate(180deg)}
}
"""
