"""Weights of a network for the same network of another plan."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nnunet_ext.networks.adapting.tied import Geometry, NotAdaptable, Origin, Tied, tied_modules
from nnunet_ext.utils.messages import some_of
from nnunet_ext.weights.adapting.kernels import Convolution, adapt_kernel
from nnunet_ext.weights.adapting.report import Fate, Row
from nnunet_ext.weights.adapting.stages import renumbered

_HEAD = re.compile(r"(.*\.seg_layers(?:\.\d+)?)\.")
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
_NEEDED_SHARE = 0.5
_MISSING = "not in the file"


def adapt_weights(
    state_dict: Mapping[str, Tensor],
    network: nn.Module,
    geometry: Mapping[str, Geometry] | None = None,
    zoom: Sequence[float] | None = None,
) -> tuple[dict[str, Tensor], list[Row]]:
    """Weights for a network from those that it had on another plan, with another patch, spacing, channels, classes or
    number of stages.

    Weights of equal shape and meaning are the file's own tensors. The others are treated as follows; what has no rule
    keeps the network's initial value.

    * Parameters that are tied to the patch: as their network's class declares (`nnunet_ext.networks.adapting`).
    * Kernels that read the image, for another number of channels, and kernels of another size: see `kernels`.
    * Stages are counted from the finest, as their names do in our networks; nnU-Net's decoders are renumbered.
      Additional stages are left, missing ones unused.
    * Heads (`seg_layers`, FAF-Net's prototypes among them) are taken whole or left: for equal numbers of classes.

    Args:
        state_dict: Names and values of the weights; what DDP and torch.compile add to names is ignored.
        network: The network of the new plan, with its initial values, on the CPU. It is not changed.
        geometry: `geometry_of` the network that the weights are from, by path of the module; None, or without an entry:
            it is inferred from the tensors and the new network, as far as possible.
        zoom: Length of the new patch in units of the old one, per axis and measured in mm; None: voxels are of the same
            size.

    Returns:
        A complete state dict of the network, and what became of each weight.

    Raises:
        ValueError: for weights of another network, or of 2D for a network in 3D and vice versa.
    """
    file = renumbered({_WRAPPERS.sub("", name): value.detach().cpu() for name, value in state_dict.items()}, network)
    adaptation = _Adaptation(file, network, geometry or {}, None if zoom is None else tuple(zoom))
    adaptation.check_family()
    for path, module, tied in tied_modules(network):
        adaptation.tied(path, module, tied)
    adaptation.rest()
    return adaptation.result, adaptation.rows()


@dataclass
class _Adaptation:
    """State of one call of `adapt_weights`.

    Attributes:
        file: The given weights.
        network: The new network.
        geometry: Known geometry of the old network.
        zoom: As in `adapt_weights`.
        result: New weights by name.
        found: Rows by name.
        settings: Rows of settings that are no weights.
        convolutions: Convolutions of the network by path, in its order.
    """

    file: dict[str, Tensor]
    network: nn.Module
    geometry: Mapping[str, Geometry]
    zoom: tuple[float, ...] | None
    result: dict[str, Tensor] = field(default_factory=dict)
    found: dict[str, Row] = field(default_factory=dict)
    settings: list[Row] = field(default_factory=list)
    convolutions: dict[str, Convolution] = field(init=False)

    def __post_init__(self) -> None:
        modules = self.network.named_modules(remove_duplicate=False)
        self.convolutions = {path: module for path, module in modules if isinstance(module, Convolution)}
        self.result = {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def check_family(self) -> None:
        own, given = ({name for name in names if not _HEAD.match(name)} for names in (self.result, self.file))
        common = own & given
        if len(common) < _NEEDED_SHARE * min(len(own), len(given)) or not common:
            raise ValueError(
                f"these are no weights of {type(self.network).__name__}: {len(common)} of its {len(own)} weights "
                f"are in the file, which has {some_of(sorted(given), 3) or 'none'}"
            )
        for name in common:
            axes = self.file[name].ndim - 2, self.result[name].ndim - 2
            if self._convolution(name) is not None and axes[0] != axes[1] and axes[0] > 0:
                raise ValueError(
                    f"these weights are of a network in {axes[0]}D, and this {type(self.network).__name__} is in "
                    f"{axes[1]}D: choose a configuration of the same number of axes ({name})"
                )

    def tied(self, path: str, module: nn.Module, tied: Tied) -> None:
        start = f"{path}." if path else ""
        old = {name.removeprefix(start): value for name, value in self.file.items() if name.startswith(start)}
        if any(name not in old for name in tied.parameters):
            why = "the file has another kind of layer here" if old else _MISSING
            for name in module.state_dict():
                self._note(f"{start}{name}", "left", why, path)
            return
        same_shapes = all(old[name].shape == self.result[f"{start}{name}"].shape for name in tied.parameters)
        same_voxels = not tied.in_mm or self.zoom is None or all(z == 1 for z in self.zoom)
        try:
            known = self.geometry.get(path) or tied.guess(old, module)
            if same_shapes and same_voxels and known in (None, tied.geometry(module)):
                return
            if known is None:
                raise NotAdaptable("the file does not say for which patch size it is")
            adapted = tied.adapt(old, module, Origin(known, self.zoom))
        # Errors but the first: tensors, or tensors and geometry, of different numbers of axes or other sizes.
        except (NotAdaptable, RuntimeError, ValueError, IndexError) as error:
            why = str(error) if isinstance(error, NotAdaptable) else "its tensors do not fit each other"
            if not tied.parameters:
                self.settings.append(Row(type(module).__name__, "setting", why))
            for name in tied.parameters:
                self._note(f"{start}{name}", "left", why, path)
            return
        for name, value in adapted.items():
            self._set(f"{start}{name}", value, tied.how, path)

    def rest(self) -> None:
        """All weights that are not tied to the patch."""
        fitting = self._fitting_heads()
        channels = self._image_channels()
        for name, new in self.result.items():
            if name in self.found:
                continue
            old, head = self.file.get(name), _HEAD.match(name)
            if old is None:
                self._note(name, "left", _MISSING)
            elif head and head[1] not in fitting:
                self._note(name, "left", "a head for other classes or features")
            elif old.shape == new.shape:
                self.result[name] = old
                self._note(name, "taken")
            elif (module := self._convolution(name)) is not None and old.ndim == new.ndim:
                try:
                    kernel, changes = adapt_kernel(old, new.shape, module, channels)
                except NotAdaptable as error:
                    self._note(name, "left", str(error))
                else:
                    self._set(name, kernel, " and ".join(changes))
            else:
                self._note(name, "left", "another width")

    def rows(self) -> list[Row]:
        """Rows in the network's order, then what the file alone has, then settings."""
        own = [self.found[name] for name in self.result]
        unused = [
            Row(name, "unused", "the network has no such weight", old=tuple(value.shape))
            for name, value in self.file.items()
            if name not in self.result
        ]
        return own + unused + self.settings

    def _set(self, name: str, value: Tensor, how: str, part: str = "") -> None:
        if value.shape != self.result[name].shape:
            self._note(name, "left", "another width", part)
            return
        self.result[name] = value
        same = value.shape == self.file[name].shape and torch.equal(value, self.file[name])
        self._note(name, "taken" if same else "adapted", "" if same else how, part)

    def _note(self, name: str, fate: Fate, how: str = "", part: str = "") -> None:
        old = self.file.get(name)
        shapes = (None if old is None else tuple(old.shape)), tuple(self.result[name].shape)
        self.found[name] = Row(name, fate, how, part, *shapes)

    def _convolution(self, name: str) -> Convolution | None:
        """The convolution whose kernel has this name."""
        path, _, kind = name.rpartition(".")
        module = self.convolutions.get(path)
        return module if kind == "weight" else None

    def _fitting_heads(self) -> set[str]:
        heads: dict[str, bool] = {}
        for name, new in self.result.items():
            if head := _HEAD.match(name):
                old = self.file.get(name)
                heads[head[1]] = heads.get(head[1], True) and old is not None and old.shape == new.shape
        return {head for head, fits in heads.items() if fits}

    def _image_channels(self) -> tuple[int, int] | None:
        """Channels that the first convolution reads, in the file and here."""
        for path, module in self.convolutions.items():
            old = self.file.get(f"{path}.weight")
            return None if old is None or old.ndim < 2 else (old.shape[1], module.weight.shape[1])
        return None
