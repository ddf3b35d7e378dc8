"""The figures of a report as files for papers: PDF and SVG, in real colours."""

import io
from collections.abc import Iterator, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from nnunet_ext.compare.labels import LabelSet
from nnunet_ext.compare.report.overlays import Scene, paint_scene
from nnunet_ext.compare.report.svg import Plot, on_paper

_FORMATS = {"pdf": {"CreationDate": None, "Creator": None, "Producer": None}, "svg": {"Date": None, "Creator": None}}
_EMBEDDED = {"pdf.fonttype": 42, "svg.fonttype": "path"}  # fonts that every program shows


def figure_files(plots: Sequence[Plot], scenes: Sequence[Scene], labels: LabelSet) -> dict[str, bytes]:
    """Contents of the figures by their names: every plot, and a row of pictures for every scene."""
    files: dict[str, bytes] = {}
    for plot in plots:
        with on_paper(plot) as figure, rc_context(_EMBEDDED):
            files.update(_saved(plot.key, figure))
    for scene in scenes:
        with rc_context(_EMBEDDED | {"svg.hashsalt": "nnunet_ext"}):
            files.update(_saved(f"pictures-{scene.rank}", paint_scene(scene, labels)))
    return files


def _saved(name: str, figure: Figure) -> Iterator[tuple[str, bytes]]:
    for ending, metadata in _FORMATS.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=ending, metadata=metadata, facecolor=figure.get_facecolor())
        yield f"{name}.{ending}", buffer.getvalue()
