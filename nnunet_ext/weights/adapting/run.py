"""A file of weights for a plan, from one for another plan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from nnunet_ext.nnunet.plan_settings import read_plan
from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.weights.adapting.adapt import adapt_weights
from nnunet_ext.weights.adapting.report import Row, counts
from nnunet_ext.weights.adapting.source import extent, read_source
from nnunet_ext.weights.files import write_pretrained


@dataclass(frozen=True)
class Adapted:
    """A file that `adapt_file` wrote.

    Attributes:
        output: The file.
        trainer: Name of the trainer that it is for.
        plans: Name of the plans that it is for.
        configuration: Configuration that it is for.
        network: The network with the adapted weights.
        rows: What became of each weight.
    """

    output: Path
    trainer: str
    plans: str
    configuration: str
    network: nn.Module
    rows: list[Row]

    def as_json(self) -> dict[str, Any]:
        return {
            "output": str(self.output),
            "trainer": self.trainer,
            "plans": self.plans,
            "configuration": self.configuration,
            "counts": counts(self.rows),
            "weights": [row.as_json() for row in self.rows],
        }


def adapt_file(source: Path, output: Path, plans: Path, configuration: str, trainer: str | None = None) -> Adapted:
    """Adapts the weights of a file to a plan and writes them for ``nnUNetv2_train ... -pretrained_weights``.

    Args:
        source: A checkpoint of nnU-Net's, or a file that `nnunet_ext import-weights` or this function wrote.
        output: File to write; it appears completely or not at all.
        plans: nnU-Net's plans file, with dataset.json in the same folder.
        configuration: Configuration of the plans.
        trainer: Name of the trainer; None: that of the checkpoint.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file cannot be read safely, names no trainer, or holds weights of another network.
    """
    if output.resolve() == source.resolve():
        raise ValueError(f"the output {output} is the input: give another file")
    setting = read_plan(plans, configuration)
    given = read_source(source, trainer)
    name = trainer or given.trainer
    if name is None:
        raise ValueError(f"{source} does not say which trainer its weights are for: name it with -tr")
    try:
        found = find_trainer(name)
    except ValueError as error:
        raise ValueError(f"{error}; it wrote {source}: name another trainer of the same network with -tr") from error
    network: nn.Module = setting.network(found, deep_supervision=True)
    zoom = None
    if given.extent is not None:
        zoom = [new / old for new, old in zip(extent(setting.configuration), given.extent, strict=False)]
    try:
        weights, rows = adapt_weights(given.weights, network, given.geometry, zoom)
    except ValueError as error:
        raise ValueError(f"{source}: {error}; the network is that of {name}") from error
    network.load_state_dict(weights)
    write_pretrained(network, output)
    return Adapted(output, name, setting.plans.plans_name, configuration, network, rows)
