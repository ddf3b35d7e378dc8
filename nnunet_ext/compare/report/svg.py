"""Matplotlib's figures: as inline SVG that follows the page's colours and says what it shows, and on paper."""

import html
import io
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources

import matplotlib as mpl
from matplotlib.collections import Collection
from matplotlib.colors import get_named_colors_mapping
from matplotlib.figure import Figure

_BASIC = ("ink", "muted", "grid", "band")
_SERIES = tuple(f"series-{number}" for number in range(1, 7))
INK, MUTED, GRID, BAND = (f"report:{name}" for name in _BASIC)
SERIES = tuple(f"report:{name}" for name in _SERIES)
# Names of Matplotlib's colours, whose values depend on where a figure is drawn. For the page each value stands for one
# of the page's colours, which has a light and a dark value.
_ON_PAGE = {name: f"#01{number:02d}01" for number, name in enumerate((*_BASIC, *_SERIES), 1)}
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
        size: Width and height, in inches of 72 pixels.
        paint: Draws into an empty figure.
    """

    key: str
    title: str
    description: str
    svg: str
    size: tuple[float, float]
    paint: Callable[[Figure], None]


@contextmanager
def _style(colours: Mapping[str, str]) -> Iterator[None]:
    """The style in which a figure must be drawn, with values of the colours by name."""
    known = get_named_colors_mapping()
    for name, value in colours.items():
        known[f"report:{name}"] = value
    with mpl.rc_context(_STYLE):
        yield


@contextmanager
def on_paper(plot: Plot) -> Iterator[Figure]:
    """Context with the plot's figure in the page's light colours, on white, without texts over marks."""
    css = resources.files("nnunet_ext.compare.report").joinpath("templates/style.css").read_text(encoding="utf-8")
    light = {name: re.search(rf"--{name}: (#\w+);", css) for name in _ON_PAGE}  # the light values stand first
    with _style({name: found[1] for name, found in light.items() if found}):
        figure = Figure(figsize=plot.size, layout="constrained", facecolor="white")
        plot.paint(figure)
        for marks in figure.findobj(Collection):
            marks.set_urls([])
        yield figure


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
    with _style(_ON_PAGE):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(key, title, description, inline(buffer.getvalue(), key, title, description), size, paint)


def inline(svg: str, key: str, title: str, description: str) -> str:
    """Markup that can stand in a page: themed, named, ids of its own, texts over marks."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg = re.sub(r'(?<=[ "])id="', f'id="{key}-', svg)
    svg = re.sub(r'xlink:href="#', f'xlink:href="#{key}-', svg)
    svg = svg.replace("url(#", f"url(#{key}-")
    svg = re.sub(rf'<a xlink:href="{TIP}([^"]*)"[^>]*>(.*?)</a>', r"<g><title>\1</title>\2</g>", svg, flags=re.S)
    for name, value in _ON_PAGE.items():
        svg = svg.replace(value, f"var(--{name})")
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
