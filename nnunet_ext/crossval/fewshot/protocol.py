"""Settings of a few-shot protocol, and the plans that its trainings use."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_ext.crossval.completion import State, copy_state
from nnunet_ext.crossval.experiment import Experiment
from nnunet_ext.crossval.repeat_plan import copy_plan
from nnunet_ext.fewshot.left_out import LEFT_OUT
from nnunet_ext.fewshot.protocol import DEFAULT_PARTS
from nnunet_ext.nnunet.encoder_variables import ENCODER, ENCODER_FROZEN, ENCODER_WEIGHTS
from nnunet_ext.utils.files import sha256_of

SOURCES = ("fold", "training")
MOST_CLASSES = 12
"""Classes are bits of the written masks, whose values must fit into 16 bits, with the ignore label."""
_ENCODER = "few_shot_encoder"
_LONGEST_NAME = 40


@dataclass(frozen=True)
class Protocol:
    """Settings of a few-shot protocol.

    Attributes:
        setting: 1: test classes may appear, unlabelled, in training; 2: slices that show one are left out.
        classes: Values in the label maps of each test class.
        supports: Number of support scans per fold and class, each of which segments all queries by itself.
        support_from: "fold": supports are patients of the validation fold, which are no queries (the paper's);
            "training": patients of the training folds.
        parts: Number of parts of a volume, each with its own support slice.
        seed: Seed of the draw of supports, of the initial encoder and of the bootstrap.
        encoder: Name of the encoder; None: the trainer's own.
        encoder_weights: Initial weights of the encoder, a file or a name that the trainer knows; None: its own.
        encoder_frozen: "0" or "1", whether the encoder is never trained; None: as the trainer has it.
    """

    setting: int
    classes: Mapping[str, tuple[int, ...]]
    supports: int = 1
    support_from: str = SOURCES[0]
    parts: int = DEFAULT_PARTS["extent"]
    seed: int = 0
    encoder: str | None = None
    encoder_weights: str | None = None
    encoder_frozen: str | None = None

    def check(self) -> None:
        """Raises ValueError for values that cannot work."""
        if self.setting not in (1, 2):
            raise ValueError(f"--setting {self.setting} must be 1 or 2")
        if self.support_from not in SOURCES:
            raise ValueError(f"--support-from {self.support_from!r} is unknown; known: {', '.join(SOURCES)}")
        for option, value in (("--supports", self.supports), ("--parts", self.parts)):
            if value < 1:
                raise ValueError(f"{option} {value} must be at least 1")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must be at least 0")
        if not 1 <= len(self.classes) <= MOST_CLASSES:
            raise ValueError(
                f"{len(self.classes)} test classes; from 1 to {MOST_CLASSES} can be segmented at once: name fewer with "
                "--test-classes and run again for the others"
            )
        weights = Path(self.encoder_weights or "")
        if weights.suffix and not weights.is_file():
            raise ValueError(f"--encoder-weights: no such file: {weights}")

    def environment(self) -> dict[str, str]:
        """The environment variables by which trainings know the encoder."""
        values = {
            ENCODER: self.encoder,
            ENCODER_WEIGHTS: self.encoder_weights,
            ENCODER_FROZEN: self.encoder_frozen,
        }
        return {name: value for name, value in values.items() if value is not None}

    def plan_entries(self) -> dict[str, Any]:
        """Entries that this protocol adds to the plans; none where plain trainings serve."""
        entries: dict[str, Any] = {}
        if self.setting == 2:
            entries[LEFT_OUT] = list(self.classes)
        if self.environment():
            weights = self.encoder_weights
            if weights is not None and Path(weights).is_file():  # the content counts, wherever the file is
                weights = f"sha256:{sha256_of(Path(weights))}"
            entries[_ENCODER] = {"name": self.encoder, "weights": weights, "frozen": self.encoder_frozen}
        return entries

    def plans_name(self, plans: str) -> str:
        """Name of the plans of the trainings: the given ones, or a copy, which has a folder of results of its own."""
        entries = self.plan_entries()
        if not entries:
            return plans
        words = ["without", *entries[LEFT_OUT]] if LEFT_OUT in entries else []
        if _ENCODER in entries:
            words.append(self.encoder or "encoder")
        # The name is for people; the digest tells apart what it abbreviates.
        shown = re.sub(r"[^A-Za-z0-9]+", "-", "-".join(words))[:_LONGEST_NAME].strip("-")
        digest = hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:6]
        return f"{plans}_{shown}_{digest}"


def write_plans(experiment: Experiment, protocol: Protocol) -> str:
    """Writes the copy of the experiment's plans that a protocol needs, if it does, and returns its name."""
    (plans,) = experiment.plans
    name = protocol.plans_name(plans)
    source, target = experiment.plans_file(plans), experiment.plans_file(name)
    if name != plans and copy_state(target, source) is not State.FINISHED:
        copy_plan(source, target, **protocol.plan_entries())
    return name
