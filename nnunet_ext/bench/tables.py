"""The measurements of `nnunet_ext bench`; each returns the rows of one CSV file."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from nnunet_ext.bench.measure import added_gigabytes, interleaved_seconds, median_ratio, spread_columns, time_columns
from nnunet_ext.bench.operators import record, replay
from nnunet_ext.bench.setting import Setting
from nnunet_ext.bench.steps import WHATS, Job, synchronised
from nnunet_ext.profiling.counts import multiply_adds
from nnunet_ext.utils.allocator import keep_freed_memory
from nnunet_ext.utils.torch_private import FakeTensorMode

Row = dict[str, object]


def network_rows(
    names: Sequence[str],
    setting: Setting,
    device: str,
    *,
    precisions: Sequence[str],
    modes: Sequence[str],
    repeats: int,
    clock: str = "wall",
) -> Iterator[Row]:
    """Parameters, multiply-adds, time and memory of networks side by side.

    Args:
        names: Names of the networks; ratios are relative to the first.
        setting: Patch, batch and topology.
        device: Device type.
        precisions: Any of `nnunet_ext.bench.steps.PRECISIONS`.
        modes: Any of `nnunet_ext.bench.steps.MODES`.
        repeats: Number of turns after the warm-up.
        clock: One of `nnunet_ext.bench.measure.CLOCKS`.
    """
    sizes = {name: _sizes(name, setting) for name in names}
    for what, precision, mode in ((w, p, m) for w in WHATS for p in precisions for m in modes):
        calls = {name: Job(name, setting, what, device, precision=precision, mode=mode).prepare() for name in names}
        times = interleaved_seconds(calls, repeats, clock=clock)
        for name in names:
            memory = added_gigabytes(calls[name], device)
            yield {
                "what": what,
                "network": name,
                **_described(setting),
                "precision": precision,
                "mode": mode,
                "seed": 0,
                **sizes[name],
                **time_columns(times[name]),
                f"of_{names[0]}": f"{median_ratio(times[name], times[names[0]]):.2f}",
                "added_GB": "" if memory is None else f"{memory:.2f}",
            }


def operator_rows(
    names: Sequence[str], setting: Setting, device: str, repeats: int, clock: str = "wall"
) -> Iterator[Row]:
    """Training steps against their convolutions and matrix products alone, in float32.

    A network with selective scans is also compared with products plus scans; see `nnunet_ext.bench.operators`. On the
    CPU, freed memory is kept from here on, as in our trainings: products take no new memory, so page faults of the step
    would count as its overhead.
    """
    if device == "cpu":
        keep_freed_memory()
    for name in names:
        step = Job(name, setting, "training step", device).prepare()
        step()
        calls = record(step)
        products, scans = ([call for call in calls if call.scans is scanned] for scanned in (False, True))
        functions: dict[str, Callable[[], object]] = {"step": step, "products": synchronised(replay(products), device)}
        if scans:
            functions["scans"] = synchronised(replay(scans), device)
        times = interleaved_seconds(functions, repeats, clock=clock)
        needed = [sum(turn) for turn in zip(*(times[key] for key in functions if key != "step"), strict=True)]
        yield {
            "network": name,
            **_described(setting),
            "precision": "float32",
            "seed": 0,
            "operators": len(products),
            **spread_columns(times["step"], prefix="step_"),
            "step_repeats": len(times["step"]),
            **spread_columns(times["products"], prefix="products_"),
            "step_of_products": f"{median_ratio(times['step'], times['products']):.2f}",
            "scans_seconds": f"{statistics.median(times['scans']):.4f}" if scans else "",
            "step_of_products_and_scans": f"{median_ratio(times['step'], needed):.2f}" if scans else "",
        }


def scaling_rows(
    names: Sequence[str], settings: Sequence[Setting], device: str, repeats: int, clock: str = "wall"
) -> Iterator[Row]:
    """Time and memory of a training step against the patch size.

    The exponents of the number of voxels are fitted to the three largest patches, because constant costs, such as
    gradients of the weights, bend the curves of small ones.
    """
    for name in names:
        steps = {str(s.patch_size): Job(name, s, "training step", device).prepare() for s in settings}
        times = interleaved_seconds(steps, repeats, clock=clock)
        rows: list[Row] = []
        for setting, (patch, step) in zip(settings, steps.items(), strict=True):
            memory = added_gigabytes(step, device)
            rows.append(
                {"network": name, **_described(setting), "voxels": math.prod(setting.patch_size)}
                | {"precision": "float32", "seed": 0, **time_columns(times[patch])}
                | {"added_GB": "" if memory is None else f"{memory:.3f}"}
            )
        exponents = {f"{column}_exponent": _exponent(rows[-3:], column) for column in ("seconds", "added_GB")}
        yield from ({**row, **exponents} for row in rows)


def tile_rows(
    names: Sequence[str], setting: Setting, device: str, *, tiles: Sequence[int], repeats: int, clock: str = "wall"
) -> Iterator[Row]:
    """Time of nnU-Net's sliding-window prediction of a scan against its number of tiles.

    Tiles overlap by half, nnU-Net's default, without mirroring. The scan is one tile wide on all axes except the last.
    """
    for name in names:
        predictor = _predictor(name, setting, device)
        *others, last = setting.patch_size
        torch.manual_seed(1)
        calls: dict[str, Callable[[], object]] = {}
        for n in tiles:
            shape = (setting.input_channels, *((1,) if len(others) == 1 else ()), *others, last + (n - 1) * (last // 2))
            predict = partial(predictor.predict_sliding_window_return_logits, torch.randn(shape))
            calls[str(n)] = synchronised(predict, device)
        times = interleaved_seconds(calls, repeats, clock=clock)
        slope, start = _line([float(n) for n in tiles], [statistics.median(times[str(n)]) for n in tiles])
        for n in tiles:
            yield {
                "network": name,
                **_described(replace(setting, batch_size=1)),
                "tiles": n,
                "precision": "float32" if device != "cuda" else "autocast",
                "seed": 0,
                **time_columns(times[str(n)]),
                "seconds_per_tile": f"{slope:.4f}",
                "seconds_at_none": f"{start:.4f}",
            }


def _predictor(name: str, setting: Setting, device: str) -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    predictor = nnUNetPredictor(
        use_mirroring=False,
        perform_everything_on_device=device == "cuda",
        device=torch.device(device),
        allow_tqdm=False,
    )
    predictor.network = setting.show(setting.build(name, deep_supervision=False))
    predictor.configuration_manager = ConfigurationManager({"patch_size": list(setting.patch_size), "architecture": {}})
    labels = {"background": 0} | {f"class {k}": k for k in range(1, setting.num_classes)}
    predictor.label_manager = LabelManager(labels, None)
    return predictor


def _sizes(name: str, setting: Setting) -> Row:
    """Columns with parameters and multiply-adds of the network that predicts."""
    with FakeTensorMode():
        network = setting.build(name, deep_supervision=False).eval()
        parameters = sum(p.numel() for p in network.parameters())
        products = multiply_adds(network, setting.input_channels, setting.patch_size)
    return {"parameters_M": f"{parameters / 1e6:.2f}", "multiply_adds_G": f"{products / 1e9:.2f}"}


def _described(setting: Setting) -> Row:
    return {
        "patch": "x".join(map(str, setting.patch_size)),
        "batch": setting.batch_size,
        "features": setting.features_in_words,
    }


def _exponent(rows: Sequence[Mapping[str, object]], column: str) -> str:
    """Exponent of the number of voxels, the slope of the logarithms; empty if it cannot be fitted."""
    values = [(float(str(row["voxels"])), float(str(row[column]) or 0)) for row in rows]
    if len(values) < 2 or any(value <= 0 for _, value in values):
        return ""
    slope, _ = _line(*([math.log(v) for v in axis] for axis in zip(*values, strict=True)))
    return f"{slope:.2f}"


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the best-fitting line."""
    fit = statistics.linear_regression(x, y)
    return fit.slope, fit.intercept
