"""The declaration of parameters whose shape or meaning depends on the patch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Geometry = tuple[int | str, ...]
"""Facts about a module that the shapes of its parameters do not show, such as its size in voxels."""
ATTRIBUTE = "tied_to_patch"
"""Attribute of a network's class: a mapping from classes of modules in it to `Tied`, or a `Tied` for itself."""


class NotAdaptable(Exception):
    """Raised by a rule that has no adaptation for these tensors; the message is the reason."""


@dataclass(frozen=True)
class Origin:
    """Facts about the network that weights come from.

    Attributes:
        geometry: Geometry of the module.
        zoom: Length of the new patch in units of the old one, per axis, measured in mm; None: unknown, and voxels are
            taken to be of the same size.
    """

    geometry: Geometry
    zoom: tuple[float, ...] | None = None

    def zoom_of(self, old: Sequence[int], new: Sequence[int]) -> tuple[float, ...]:
        """`zoom`, for a map that has `old` voxels in the old network and `new` ones in the new network."""
        return tuple(m / n for n, m in zip(old, new, strict=True)) if self.zoom is None else self.zoom


@dataclass(frozen=True)
class Tied:
    """Parameters of a module that are tied to the patch, and how they travel.

    Attributes:
        parameters: Names, relative to the module, of those that a file must have; otherwise it holds another kind of
            layer there, and nothing of the module is taken.
        geometry: Function from a module to its geometry; an empty one: nothing in this module is tied.
        guess: Function from a file's tensors, by relative name, and the new module to the geometry of the old one, for
            files that do not say it; None: it cannot be told.
        adapt: Function from the file's tensors, by relative name, the new module and the origin to the new tensors. It
            may leave out parameters that stay as they are, and raise `NotAdaptable`. Differences that have nothing to
            do with the patch (channels) are left to the caller, which compares shapes.
        how: What is done, in a few words, for the table.
        in_mm: Whether the parameters depend on the size of voxels as well.
    """

    parameters: tuple[str, ...]
    geometry: Callable[[Any], Geometry]
    guess: Callable[[Mapping[str, Tensor], Any], Geometry | None]
    adapt: Callable[[Mapping[str, Tensor], Any, Origin], Mapping[str, Tensor]]
    how: str
    in_mm: bool = False


Declaration = Mapping[type[nn.Module], Tied] | Tied


def tied_modules(network: nn.Module) -> Iterator[tuple[str, nn.Module, Tied]]:
    """Paths, modules and declarations of what is tied to the patch.

    The declaration of a network's class holds for all modules in it, those of a backbone included, which may add its
    own.
    """
    declared: dict[str, Mapping[type[nn.Module], Tied]] = {}
    for path, module in network.named_modules():
        own = getattr(type(module), ATTRIBUTE, None)
        if own is not None:
            declared[path] = {type(module): own} if isinstance(own, Tied) else own
        found = (rules.get(type(module)) for start, rules in declared.items() if _is_within(path, start))
        tied = next(filter(None, found), None)
        if tied is not None and tied.geometry(module):
            yield path, module, tied


def geometry_of(network: nn.Module) -> dict[str, Geometry]:
    """Geometry of every module that is tied to the patch, by its path."""
    return {path: tied.geometry(module) for path, module, tied in tied_modules(network)}


def sizes(geometry: Sequence[int | str]) -> tuple[int, ...]:
    """The numbers of a geometry."""
    return tuple(value for value in geometry if isinstance(value, int))


def _is_within(path: str, start: str) -> bool:
    return not start or path == start or path.startswith(f"{start}.")
