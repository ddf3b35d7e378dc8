"""The draw of support scans: which scans of a fold show the classes, and which are segmented."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnunet_ext.crossval.fewshot.protocol import Protocol


@dataclass(frozen=True)
class FoldDraw:
    """Support and query scans of a fold.

    Attributes:
        fold: Number of the fold.
        supports: For each draw, the support scan of each class.
        queries: Scans that are segmented, sorted; the same for all draws.
    """

    fold: int
    supports: tuple[Mapping[str, str], ...]
    queries: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        return {"supports": [dict(support) for support in self.supports], "queries": list(self.queries)}


def draw_fold(
    fold: int,
    split: Mapping[str, Sequence[str]],
    shown: Mapping[str, Collection[str]],
    groups: Mapping[str, str],
    protocol: Protocol,
) -> FoldDraw:
    """Draws the supports of a fold.

    As in the papers, one scan supports all classes that it shows; where it lacks one, a further scan supports that
    class. Draws take different patients. With `support_from="fold"` no scan of any support's patient is a query, in no
    draw, so that all draws segment the same scans.

    Args:
        fold: Number of the fold, which seeds the draw together with the protocol's seed.
        split: The fold's training and validation cases.
        shown: Classes that each case shows.
        groups: Patient of each case.
        protocol: Classes, number and source of the supports, seed.

    Raises:
        ValueError: if patients are too few for the supports, or leave nothing to segment of a class.
    """
    from_fold = protocol.support_from == "fold"
    candidates = sorted(split["val"] if from_fold else split["train"])
    where = f"fold {fold}" if from_fold else f"the training cases of fold {fold}"
    patients = {name: {groups[case] for case in candidates if name in shown[case]} for name in protocol.classes}
    for name, found in patients.items():
        if not found:
            raise ValueError(f"no patient of {where} has the class {name!r}: {_remedy(from_fold)}")
    order = [str(case) for case in np.random.default_rng((protocol.seed, fold)).permutation(candidates)]
    rarest_first = sorted(protocol.classes, key=lambda name: len(patients[name]))
    used: set[str] = set()
    draws = []
    for number in range(protocol.supports):
        drawn: dict[str, str] = {}
        free = [case for case in order if groups[case] not in used]
        for name in rarest_first:
            case = next((case for case in [*drawn.values(), *free] if name in shown[case]), None)
            if case is None:
                raise ValueError(
                    f"{where} has {len(patients[name])} patient(s) with the class {name!r}, too few for support "
                    f"{number + 1} of {protocol.supports}: give fewer --supports{_more(from_fold)}"
                )
            drawn[name] = case
        used |= {groups[case] for case in drawn.values()}
        draws.append({name: drawn[name] for name in protocol.classes})
    queries = sorted(case for case in split["val"] if not from_fold or groups[case] not in used)
    for name in protocol.classes:
        if not any(name in shown[case] for case in queries):
            besides = f" besides its {len(used)} support(s)" if from_fold else ""
            remedy = f"give fewer --supports, {_remedy(from_fold)}" if from_fold else _remedy(from_fold)
            raise ValueError(
                f"no patient of fold {fold}{besides} has the class {name!r}, so that there is nothing to segment: "
                f"{remedy}"
            )
    return FoldDraw(fold, tuple(draws), tuple(queries))


def _remedy(from_fold: bool) -> str:
    return f"leave it out with --test-classes, leave the fold out with --folds, or split otherwise{_more(from_fold)}"


def _more(from_fold: bool) -> str:
    return ", or take --support-from training" if from_fold else ""
