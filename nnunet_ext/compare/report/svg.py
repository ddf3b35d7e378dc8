"""Matplotlib's figures as inline SVG that follows the page's colours and says what it shows."""

import html
import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

# Matplotlib needs real colours; each stands for one of the page's, which has a light and a dark value.
INK, MUTED, GRID, BAND = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#110101", "#110202", "#110303", "#110404", "#110505", "#110606")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", BAND: "band"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES, 1)
}
TIP = "tip:"
"""Start of a URL whose remainder becomes the text shown over a mark."""

_ENLARGED = 1.25  # at most: figures are drawn for a phone's width
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nnunet_ext",
    "font.size": 11.5,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@dataclass(frozen=True)
class Plot:
    """A figure of the page.

    Attributes:
        key: Id on the page.
        title: Heading above it.
        description: Text alternative.
        svg: SVG markup.
    """

    key: str
    title: str
    description: str
    svg: str


def style() -> AbstractContextManager:
    """The style in which a figure must be drawn."""
    return mpl.rc_context(_STYLE)


def colour(number: int) -> str:
    """Colour of the n-th series, from 0."""
    return SERIES[number % len(SERIES)]


def draw(key: str, title: str, description: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> Plot:
    """Draws a figure without touching pyplot's state.

    Args:
        key: Id on the page.
        title: Heading above the figure.
        description: Text alternative.
        size: Width and height, in inches of 72 pixels.
        paint: Draws into the empty figure.
    """
    with style():
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(key, title, description, inline(buffer.getvalue(), key, title, description))


def inline(svg: str, key: str, title: str, description: str) -> str:
    """Markup that can stand in a page: themed, named, ids of its own, texts over marks."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(?<=[ "])id="', f'id="{key}-', svg)
    svg = re.sub(r'xlink:href="#', f'xlink:href="#{key}-', svg)
    svg = svg.replace("url(#", f"url(#{key}-")
    svg = re.sub(rf'<a xlink:href="{TIP}([^"]*)"[^>]*>(.*?)</a>', r"<g><title>\1</title>\2</g>", svg, flags=re.S)
    for sentinel, variable in _VARIABLES.items():
        svg = svg.replace(sentinel, f"var(--{variable})")
    view, width = re.search(r'viewBox="([^"]+)"', svg), re.search(r'width="([\d.]+)pt"', svg)
    assert view  # Matplotlib always writes both
    assert width
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{view[1]}" style="max-width:{_ENLARGED * float(width[1]):.0f}px" role="img" '
        f'aria-labelledby="{key}-title {key}-text"><title id="{key}-title">{html.escape(title)}</title>'
        f'<desc id="{key}-text">{html.escape(description)}</desc>'
    )
    return re.sub(r"<svg[^>]*>", lambda _: head, svg, count=1)
