"""The formats of an exported network: how a file is written, and how it is run again."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnunet_ext.ops.portable import portable_operators
from nnunet_ext.utils.messages import first_line
from nnunet_ext.utils.torch_private import EXPORT_LOGGER

INPUT, OUTPUT = "tile", "logits"
"""Names of the tensors in formats that name them."""
_TRACED_BATCH = 2
"""Samples of the recorded call. With one, torch.export takes the size of the batch for a constant."""
_TALKATIVE = ("onnxscript", "onnx_ir", "torch.onnx", EXPORT_LOGGER)
"""Loggers that report every node they leave as it is."""

Run = Callable[[Tensor], Tensor]


class ExportError(Exception):
    """A network cannot be exported, or its file does not give the network's logits."""


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: Name on the command line.
        runtime: Name of what runs it.
        packages: Packages beyond PyTorch that writing and running need.
        write: Function of the network, a batch of tiles and the file, which returns facts for the description.
        load: Function from the file to a function from tiles to logits.
    """

    name: str
    runtime: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, Path], dict[str, Any]]
    load: Callable[[Path], Run]


def check_packages(chosen: Format) -> None:
    """Raises ValueError, naming the extra, unless the packages of a format are installed."""
    missing = [name for name in chosen.packages if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"--format {chosen.name} needs {', '.join(missing)}, which {'are' if missing[1:] else 'is'} not "
            "installed: pip install 'nnunet_ext[export]'"
        )


def write(chosen: Format, network: nn.Module, tile: Tensor, file: Path) -> dict[str, Any]:
    """Writes a network in its portable form; returns what the format adds to the description.

    Args:
        chosen: The format.
        network: Network in evaluation, on the CPU, that returns one tensor of logits.
        tile: A tile (1, M, *P).
        file: File to write.

    Raises:
        ExportError: with the first line of the reason, if the exporter does not support the network.
    """
    batch = tile.expand(_TRACED_BATCH, *tile.shape[1:]).contiguous()
    try:
        with torch.no_grad(), _quiet():
            return chosen.write(network, batch, file)
    except OSError:
        raise
    except Exception as error:  # of any kind: exporters end in their own errors and in those of what they trace
        raise ExportError(
            f"{type(network).__name__} cannot be exported as {chosen.name} with PyTorch {torch.__version__} "
            f"({first_line(error)}); other formats: {', '.join(name for name in FORMATS if name != chosen.name)}"
        ) from error


def load(chosen: Format, file: Path) -> Run:
    """The network of a file, as a function from tiles to logits."""
    with _quiet():
        run = chosen.load(file)

    def quietly(tiles: Tensor) -> Tensor:
        with torch.no_grad(), _quiet():
            return run(tiles)

    return quietly


def _exported(network: nn.Module, batch: Tensor) -> torch.export.ExportedProgram:
    sizes = ({0: torch.export.Dim("batch")},)
    with portable_operators("scan"):
        return torch.export.export(network, (batch,), dynamic_shapes=sizes, strict=False)


def _write_torch_export(network: nn.Module, batch: Tensor, file: Path) -> dict[str, Any]:
    program = _exported(network, batch)
    with file.open("wb") as opened:  # PyTorch expects the ending .pt2 in a file's name
        torch.export.save(program, opened)
    return {}


def _load_torch_export(file: Path) -> Run:
    with file.open("rb") as opened:
        return torch.export.load(opened).module()


def _write_onnx(network: nn.Module, batch: Tensor, file: Path) -> dict[str, Any]:
    exported = _exported(network, batch)
    program = torch.onnx.export(exported, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
    if program is None:
        raise RuntimeError("the exporter returned no model")
    program.save(file, external_data=False)  # one file; ONNX allows 2 GB in it
    return {"opset": program.model.opset_imports[""]}


def _load_onnx(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda tiles: torch.from_numpy(session.run([OUTPUT], {INPUT: tiles.numpy()})[0])


def _write_torchscript(network: nn.Module, batch: Tensor, file: Path) -> dict[str, Any]:
    with portable_operators("script"):
        traced = torch.jit.trace(network, batch, check_trace=False)  # it compares graphs; here values are compared
    torch.jit.save(traced, str(file))
    return {}


def _load_torchscript(file: Path) -> Run:
    return torch.jit.load(str(file))


FORMATS = {
    chosen.name: chosen
    for chosen in (
        Format("torch-export", "torch.export.load", (), _write_torch_export, _load_torch_export),
        Format("onnx", "onnxruntime", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
        Format("torchscript", "torch.jit.load", (), _write_torchscript, _load_torchscript),
    )
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Context without the exporters' progress, remarks and deprecations, none of which a user can act on."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
