"""What in a model's folder could execute code when nnU-Net uses it."""

import pickletools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nnunet_ext.nnunet.checkpoints import read_checkpoint
from nnunet_ext.utils.safe_load import NotPlainError

_NETWORK = re.compile(
    r"(nnunet_ext\.networks|dynamic_network_architectures\.\w+|monai\.networks\.nets|torch\.nn(\.modules)?)(\.[a-z]\w*)?"
    r"\.[A-Z]\w*"
)
"""Classes that a plan may name. A longer path could lead through the modules that one of these imports."""
_POSTPROCESSING = (
    "nnunetv2.postprocessing.remove_connected_components remove_all_but_largest_component_from_segmentation"
)
"""The one function that nnU-Net's postprocessing.pkl names."""
_EXECUTABLE = (".py", ".pyc", ".so", ".pyd", ".dll", ".dylib", ".sh", ".bat", ".exe")
_WITHOUT_EFFECT = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "FRAME")


def code_in(folder: Path, plans: Mapping[str, Any], code: tuple[str, ...]) -> Iterator[str]:
    """Sentences, one for each thing that could execute code.

    Args:
        folder: The model's folder.
        plans: Its plans.
        code: Source files that the manifest names.

    Raises:
        ValueError: for damaged checkpoints.
    """
    yield from (f"{name} is the source of a trainer" for name in code)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder).as_posix()
        if file.suffix == ".pth":
            try:
                read_checkpoint(file)
            except NotPlainError as error:
                yield f"{name} holds Python objects ({error.objects})"
        elif file.suffix in (".pkl", ".pickle"):
            foreign = [found for found in _globals(file) if found != _POSTPROCESSING]
            if foreign:
                yield f"{name} calls {foreign[0].replace(' ', '.')}"
        elif name not in code and file.suffix in _EXECUTABLE:
            yield f"{name} can be executed"
    yield from (f"plans.json names the class {name}" for name in _foreign_classes(plans))


def _globals(file: Path) -> list[str]:
    """What a pickle imports, as "module name"; it is not executed.

    Only two texts directly before STACK_GLOBAL surely are its arguments; otherwise they are unknown, "? ?".
    """
    found: list[str] = []
    texts: list[str] = []
    try:
        for operation, argument, _ in pickletools.genops(file.read_bytes()):
            if operation.name == "STACK_GLOBAL":
                found.append(" ".join(texts[-2:]) if len(texts) > 1 else "? ?")
            elif operation.name in ("GLOBAL", "INST"):
                found.append(str(argument))
            if "UNICODE" in operation.name:
                texts.append(str(argument))
            elif operation.name not in _WITHOUT_EFFECT:
                texts = []
    except Exception:  # the type depends on the damage
        return ["? ?"]
    return found


def _foreign_classes(plans: Mapping[str, Any]) -> Iterator[str]:
    """What nnU-Net would import for a plan that is no class of a known package of networks or layers."""
    for configuration in plans["configurations"].values():
        architecture = configuration.get("architecture", {})
        arguments = architecture.get("arch_kwargs", {})
        names = [
            architecture.get("network_class_name"),
            *map(arguments.get, architecture.get("_kw_requires_import", ())),
        ]
        yield from (name for name in names if isinstance(name, str) and not _NETWORK.fullmatch(name))
