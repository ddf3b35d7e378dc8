"""Consensus ranking of methods over several datasets, from the reports of each.

Methods are ranked by their mean Dice in every dataset (equal means share their mean rank); the consensus is the order
of the mean of these ranks. Intervals are percentiles over resamples of the cases of every dataset.

Source:
    Wiesenfarth et al., "Methods and open-source toolkit for analyzing and visualizing challenge results", Scientific
    Reports 2021: aggregate then rank, consensus by mean ranks (method "euclidean").
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from nnunet_ext.compare.metrics import PRIMARY
from nnunet_ext.compare.statistics import RESAMPLES
from nnunet_ext.nnunet.json_files import read_json
from nnunet_ext.utils.files import check_writable, replacing


@dataclass(frozen=True)
class Place:
    """A method's place in the consensus.

    Attributes:
        name: The method.
        mean_rank: Mean over datasets of its rank, 1 the best.
        low: 2.5% quantile of the mean rank over resamples.
        high: 97.5% quantile.
        ranks: Its rank in each dataset.
    """

    name: str
    mean_rank: float
    low: float
    high: float
    ranks: tuple[float, ...]


def consensus(
    scores: Sequence[NDArray[np.float64]],
    names: Sequence[str],
    units: Sequence[Sequence[str]] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Place]:
    """The methods by their mean rank over datasets, the best first.

    Args:
        scores: Scores in each dataset; higher is better.
        names: Names of the methods.
        units: Group of each case in each dataset, resampled as a whole; None: every case is its own group.
        seed: Seed of the bootstrap.
        resamples: Number of resamples.

    Shape:
        each of scores (methods, cases), without NaN.
    """
    generator, drawn = np.random.default_rng(seed), np.zeros((len(names), resamples))
    ranks = np.array([stats.rankdata(-table.mean(axis=1).round(12)) for table in scores])
    for number, table in enumerate(scores):
        index = np.arange(table.shape[1]) if units is None else np.unique(list(units[number]), return_inverse=True)[1]
        sums, sizes = np.array([np.bincount(index, row) for row in table]), np.bincount(index)
        times = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=resamples)
        drawn += stats.rankdata(-((sums @ times.T) / (times @ sizes)).round(12), axis=0)
    means, drawn = ranks.mean(axis=0), drawn / len(scores)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    return [
        Place(names[i], float(means[i]), float(low[i]), float(high[i]), tuple(ranks[:, i].tolist()))
        for i in np.argsort(means, kind="stable")
    ]


def run(reports: Sequence[Path], output: Path, seed: int = 0) -> list[Place]:
    """Reads reports, and writes consensus.json and consensus.html.

    Args:
        reports: summary.json of each dataset's report, with cases.csv beside it.
        output: Folder of the page; created if it is missing.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: for fewer than two reports, and for reports of different methods.
        FileNotFoundError: for missing files.
    """
    if len(reports) < 2:
        raise ValueError("--reports needs the summary.json of at least two datasets")
    summaries = [read_json(path) for path in reports]
    names = list(summaries[0]["entrants"])
    for path, content in zip(reports, summaries, strict=True):
        if set(content["entrants"]) != set(names):
            raise ValueError(
                f"the methods differ: {reports[0]} has {', '.join(names)}, {path} has "
                f"{', '.join(content['entrants'])}; compare the same methods on every dataset"
            )
    tables, units = [], []
    for path, content in zip(reports, summaries, strict=True):
        table = _case_scores(path.with_name("cases.csv"), names)
        tables.append(table.to_numpy())
        groups = content.get("groups") or {}
        units.append([str(groups.get(str(case), case)) for case in table.columns])
    places = consensus(tables, names, units, seed)
    titles = [content["title"] for content in summaries]
    check_writable(output)
    files = {
        "consensus.json": json.dumps({"datasets": titles, "places": [asdict(p) for p in places]}, indent=2) + "\n",
        "consensus.html": page(titles, places),
    }
    with ExitStack() as stack:
        for name, text in files.items():
            stack.enter_context(replacing(output / name, "w")).write(text)
    return places


def _case_scores(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """Mean Dice over labels and repeats of methods by cases."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}; it is written beside summary.json")
    rows = pd.read_csv(path, dtype={"case": str, "entrant": str})
    return rows.groupby(["entrant", "case"])[PRIMARY].mean().unstack("case").loc[list(names)].dropna(axis=1)


def page(titles: Sequence[str], places: Sequence[Place]) -> str:
    """One page with the consensus and the rank in each dataset; it is self-contained."""
    heads = ["Method", "Mean rank", "95% interval", *titles]
    lines = [
        [p.name, f"{p.mean_rank:.2f}", f"{p.low:.2f} to {p.high:.2f}", *(f"{rank:g}" for rank in p.ranks)]
        for p in places
    ]
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in line)}</tr>\n" for line in lines)
    style = (Path(__file__).parent / "report" / "templates" / "style.css").read_text()
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>Consensus over {len(titles)} datasets</title>
<link rel="icon" href="data:,"><style>{style}</style></head>
<body><header><h1>{escape(places[0].name)} has the best mean rank over {len(titles)} datasets.</h1></header>
<main><div class="scroll" role="region" aria-label="Consensus ranking" tabindex="0"><table>
<thead><tr>{head}</tr></thead><tbody>
{body}</tbody></table></div>
<p>Methods are ranked by their mean Dice in every dataset; the consensus is the mean of these ranks. Intervals are
percentiles over {RESAMPLES:,} resamples of the cases (of whole groups where they are known) of every dataset.</p>
</main></body></html>
"""
