"""`nnunet_ext bench`: makes the setting from the options, runs the measurements, and writes a CSV file for each."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nnunet_ext.bench.measure import environment, write_csv
from nnunet_ext.bench.numbers import check_numbers
from nnunet_ext.bench.setting import NETWORKS, Setting
from nnunet_ext.bench.tables import Row, network_rows, operator_rows, scaling_rows, tile_rows
from nnunet_ext.utils.devices import choose_device

_PATCH, _BATCH = (40, 56, 40), 2
_REFERENCE = ("PlainConvUNet",)
"""The network beside which trainers' networks are measured."""


def run(
    *,
    what: Sequence[str],
    networks: Sequence[str] | None,
    trainers: Sequence[str] = (),
    plan: tuple[Path, str] | None,
    patch_size: tuple[int, ...] | None,
    batch_size: int | None,
    sizes: Sequence[int],
    tiles: Sequence[int],
    precisions: Sequence[str],
    modes: Sequence[str],
    device: str,
    threads: int | None,
    repeats: int,
    output: Path,
    label: str = "",
    clock: str = "wall",
) -> list[Path]:
    """Runs measurements and writes OUTPUT/NAME_DEVICE.csv, for instance `networks_cpu.csv`; returns the files.

    Args:
        what: Names of measurements: networks, operators, scaling, tiles.
        networks: Names of networks; None: all that fit the setting, or the reference alone if there are trainers.
        trainers: Names of trainers whose networks are measured too.
        plan: A plans file and its configuration, instead of `patch_size` and `batch_size`.
        patch_size: P in voxels, planned as isotropic; None: 40 x 56 x 40.
        batch_size: Samples in a batch of a training step; None: 2.
        sizes: Edge lengths of the patches of "scaling", with as many axes as the setting has and the smallest patch's
            topology.
        tiles: Numbers of tiles for "tiles".
        precisions: Precisions for "networks".
        modes: Modes for "networks".
        device: auto, or a type of device.
        threads: Threads of the CPU; None: torch's default.
        repeats: Timed repetitions.
        output: Folder of the files.
        label: Part of the files' names: `networks_LABEL_cpu.csv`.
        clock: One of `nnunet_ext.bench.measure.CLOCKS`.

    Raises:
        ValueError: for a network that is unknown or does not fit the setting, a patch that nnU-Net would not plan or
            that is given together with a plan, a number that is not positive, fewer than two numbers of tiles, an
            unavailable device, or the processor's clock with more than one thread.
        FileNotFoundError: if the plan is missing.
    """
    check_numbers(repeats, batch_size, sizes, tiles if "tiles" in what else None, threads)
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = choose_device(device)
    setting = _setting(plan, patch_size, batch_size)
    if trainers:
        networks = [*(_REFERENCE if networks is None else networks), *trainers]
    names = _fitting(networks, setting)
    measurements = {
        "networks": lambda: network_rows(
            names, setting, chosen, precisions=precisions, modes=modes, repeats=repeats, clock=clock
        ),
        "operators": lambda: operator_rows(names, setting, chosen, repeats=repeats, clock=clock),
        "scaling": lambda: scaling_rows(names, _cubes(setting, sizes), chosen, repeats=repeats, clock=clock),
        "tiles": lambda: tile_rows(names, setting, chosen, tiles=sorted(set(tiles)), repeats=repeats, clock=clock),
    }
    if clock == "processor" and chosen != "cpu":
        raise ValueError(f"--clock processor measures the CPU, not {chosen}")
    where = {"clock": clock, **environment(chosen)}
    ending = f"_{label}_{chosen}.csv" if label else f"_{chosen}.csv"
    last = sorted(what, key="operators".__eq__)  # it changes how this process treats freed memory
    return [write_csv(output / f"{name}{ending}", list(_announced(measurements[name]())), where) for name in last]


def _setting(plan: tuple[Path, str] | None, patch_size: tuple[int, ...] | None, batch_size: int | None) -> Setting:
    if plan is None:
        return Setting.of_patch(patch_size or _PATCH, batch_size or _BATCH)
    if patch_size is not None or batch_size is not None:
        raise ValueError("--plans has a patch and a batch size of its own: leave --patch and --batch-size out")
    return Setting.of_plan(*plan)


def _fitting(networks: Sequence[str] | None, setting: Setting) -> list[str]:
    """The given names; None: all networks that can be built on the setting. Names of the others are printed."""
    names = []
    for name in NETWORKS if networks is None else networks:
        try:
            setting.build(name)
        except ValueError as error:
            if networks is not None:
                raise
            print(f"{name} left out: {error}", file=sys.stderr)
        else:
            names.append(name)
    return names


def _cubes(setting: Setting, sizes: Sequence[int]) -> list[Setting]:
    """Settings with patches of several sizes and one topology, because more stages would make another network.

    The topology is that of the smallest patch. Patches are isotropic, even if the setting is not; batch, channels and
    classes are the setting's.
    """
    axes = len(setting.patch_size)
    planned = [Setting.of_patch((size,) * axes, setting.batch_size, "--sizes") for size in sorted(set(sizes))]
    smallest = replace(planned[0], input_channels=setting.input_channels, num_classes=setting.num_classes)
    return [replace(smallest, patch_size=cube.patch_size) for cube in planned]


def _announced(rows: Iterator[Row]) -> Iterator[Row]:
    """Names each row at once, because measuring takes minutes; the table follows at the end."""
    for row in rows:
        print("measured:", *list(row.values())[:3], file=sys.stderr, flush=True)
        yield row
