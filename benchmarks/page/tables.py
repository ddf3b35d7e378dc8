"""Tables of the committed measurements, for the results page, the README and other pages."""

from collections.abc import Callable

from benchmarks.page.accuracy_tables import (
    dice_of_trainings,
    few_shot,
    few_shot_encoders,
    fine_tuning,
    mean_dice,
    shown_dice,
    spread,
)
from benchmarks.page.result_files import Row, Rows, in_order, markdown_table

STOCK = "PlainConvUNet"
"""The network that others are compared with: nnU-Net's default."""


def networks(rows: Rows) -> str:
    """One table for each precision and mode."""
    tables = []
    for precision, mode in in_order((row["precision"], row["mode"]) for row in rows):
        part = [row for row in rows if (row["precision"], row["mode"]) == (precision, mode)]
        named = "autocast (bfloat16)" if precision == "autocast" and part[0]["device"] == "cpu" else precision
        batches = f"training steps of batch {part[0]['batch']}, forward passes of 1"
        head = f"Patch {part[0]['patch']}; {batches}; {named}, {mode}."
        tables.append(f"{head}\n\n{_networks(part)}")
    return "\n\n".join(tables)


def _networks(rows: Rows) -> str:
    header = ["network", "parameters", "multiply-adds"]
    header += ["forward, s", "relative to stock", "memory", "training step, s", "relative to stock", "memory"]
    by_call = {(row["network"], row["what"]): row for row in rows}
    lines = []
    for name in in_order(row["network"] for row in rows):
        forward, step = by_call[name, "forward"], by_call[name, "training step"]
        cells = [name, f"{float(forward['parameters_M']):.1f} M", f"{float(forward['multiply_adds_G']):.1f} G"]
        for row in (forward, step):
            cells += [_spread(row), f"{float(row[f'of_{STOCK}']):.2f}", _gigabytes(row["added_GB"])]
        lines.append(cells)
    return markdown_table(header, lines)


def networks_short(rows: Rows, accuracy: Rows = ()) -> str:
    """One row per network, float32 and eager: time of a training step relative to nnU-Net's, Dice where measured."""
    dice, means = dice_of_trainings(accuracy, "mean"), mean_dice(accuracy)
    steps = {
        row["network"]: row
        for row in rows
        if (row["what"], row["precision"], row["mode"]) == ("training step", "float32", "eager")
    }
    lines = []
    for name, row in steps.items():
        trainer = TRAINER_OF.get(name, "")
        cells = [name, f"{float(row[f'of_{STOCK}']):.2f}", shown_dice(means, trainer)]
        if len(dice.get(trainer, ())) > 1:
            cells[-1] += f", {spread(dice[trainer])}"
        lines.append(cells if dice else cells[:2])
    header = ["network", f"time of a training step (`{STOCK}`: 1)"]
    if dice:
        header.append(f"mean Dice after {_budget(accuracy)} (one training, or several and their range)")
    return markdown_table(header, lines)


def _budget(accuracy: Rows) -> str:
    return f"{' or '.join(in_order(row['iterations'] for row in accuracy))} iterations"


TRAINER_OF = {
    STOCK: "StockTrainer",
    "SASAN": "SASANTrainer",
    "EM-Net": "EMNetTrainer",
    "SALSTM": "SALSTMTrainer",
    "LSTMSA": "LSTMSATrainer",
    "FAF-Net": "FAFNetTrainer",
    "U-Mamba Enc": "UMambaEncTrainer",
    "U-Mamba Bot": "UMambaBotTrainer",
    "U-Mamba Bot without Mamba": "UMambaBotNoMambaTrainer",
}
"""The trainer whose accuracy is shown beside a network's cost."""


def transcriptions(rows: Rows) -> str:
    header = ["network", "patch", "", "naive, s", "ours, s", "", "naive, memory", "ours, memory"]
    by_form = {(row["network"], row["what"], row["form"]): row for row in rows}
    lines = []
    for name, what in in_order((row["network"], row["what"]) for row in rows):
        plain, ours = by_form[name, what, "plain"], by_form[name, what, "ours"]
        lines.append(
            [
                *(name, ours["patch"], what, _spread(plain), _spread(ours), faster(ours["times_faster"])),
                *(_gigabytes(row["added_GB"]) for row in (plain, ours)),
            ]
        )
    return markdown_table(header, lines)


def operators(rows: Rows) -> str:
    """One row per network and processor: what lies beside the products weighs more where products are fast."""
    header = ["network", "patch", "batch", "processor", "step, s", "convolutions and products alone, s", "ratio"]
    seconds = ("step_seconds", "products_seconds", "step_of_products")
    lines = [
        [
            *_cells(row, "network", "patch", "batch", "processor"),
            *_rounded(row, 2, *seconds),
            row["step_of_products_and_scans"],
        ]
        for row in rows
    ]
    return markdown_table([*header, "ratio to products and scans"], lines)


def scaling(rows: Rows) -> str:
    patches = in_order(row["patch"] for row in rows)
    header = ["network", *(f"{patch}, s" for patch in patches), "exponent of time"]
    header += [*(f"{patch}, memory" for patch in patches), "exponent of memory"]
    by_patch = {(row["network"], row["patch"]): row for row in rows}
    lines = []
    for name in in_order(row["network"] for row in rows):
        mine = [by_patch.get((name, patch)) for patch in patches]
        some = next(row for row in mine if row)
        seconds = [_spread(row) if row else "" for row in mine]
        memory = [_gigabytes(row["added_GB"]) if row else "" for row in mine]
        lines.append([name, *seconds, some["seconds_exponent"], *memory, some["added_GB_exponent"]])
    return markdown_table(header, lines)


def tiles(rows: Rows) -> str:
    numbers = in_order(row["tiles"] for row in rows)
    header = ["network", *(f"{number} tile{'' if number == '1' else 's'}, s" for number in numbers)]
    header += ["each additional tile, s (fit)", "fixed cost, s (fit)"]
    by_number = {(row["network"], row["tiles"]): row for row in rows}
    lines = []
    for name in in_order(row["network"] for row in rows):
        mine = [by_number[name, number] for number in numbers]
        fit = (_no_minus_zero(mine[0][key]) for key in ("seconds_per_tile", "seconds_at_none"))
        lines.append([name, *map(_spread, mine), *fit])
    return markdown_table(header, lines)


_SCANS = {"mambapy": "mambapy", "loop": "loop over time", "extension": "C extension", "segments": "plain PyTorch"}


def selective_scan(rows: Rows) -> str:
    header = ["b d n l", "", "scan", "milliseconds", "against mambapy", "extra memory, in multiples of u"]
    lines = []
    for row in rows:
        times, memory = (float(row[key]) for key in ("times_faster_than_mambapy", "extra_memory_in_sizes_of_u"))
        ratio = "" if row["method"] == "mambapy" else faster(times)
        milliseconds = f"{float(row['milliseconds']):.{0 if float(row['milliseconds']) > 10 else 1}f}"
        named = row["b_d_n_l"], row["what"], _SCANS[row["method"]]
        lines.append([*named, milliseconds, ratio, f"{memory:.0f}"])
    return markdown_table(header, lines)


def sasan(rows: Rows) -> str:
    lines = []
    for row in rows:
        digits = 3 if float(row["ours_s"]) < 1 else 1
        ours, plain = (f"{float(row[key]):.{digits}f} s" for key in ("ours_s", "plain_s"))
        lines.append([f"{row['what']}; {row['setting']}", ours, plain, faster(row["times_faster"])])
        if row["ours_added_GB"]:
            memory = [_gigabytes(row[key]) for key in ("ours_added_GB", "plain_added_GB")]
            lines.append([f"{row['what']}, peak memory", *memory, f"{float(row['added_ratio']):.2f} times as much"])
    return markdown_table(["", "SASAN", "naive reference", ""], lines)


def plain(rows: Rows) -> str:
    """Our implementation against a naive reference, from rows that `plain_row` made."""
    lines = [
        [*_cells(row, "what", "setting"), *_rounded(row, 2, "plain_s", "ours_s"), faster(row["times_faster"])]
        for row in rows
    ]
    return markdown_table(["", "setting", "naive, s", "ours, s", ""], lines)


_BACKENDS = {"cpu": "C extension", "torch": "plain PyTorch", "multiplication": "multiplication"}


def em_net(rows: Rows) -> str:
    header = ["", "scan", "seconds", "relative to the multiplication", "peak memory"]
    lines = []
    for row in rows:
        numbers = _rounded(row, 2, "seconds", "of_multiplication")
        lines.append([row["what"], _BACKENDS[row["scan"]], *numbers, _gigabytes(row["added_GB"])])
    return markdown_table(header, lines)


def u_mamba(rows: Rows) -> str:
    header = ["network", "patch", "", "scan", "seconds", "against mambapy", "memory"]
    lines = []
    for row in rows:
        ratio = "" if row["scan"] == "mambapy" else faster(row["times_faster_than_mambapy"])
        named = _cells(row, "network", "patch", "what", "scan")
        lines.append([*named, _spread(row), ratio, _gigabytes(row["added_GB"])])
    return markdown_table(header, lines)


def lstm_sa(rows: Rows) -> str:
    header = ["", "setting", "seconds", "relative to the row of 1.00 above", "peak memory"]
    lines = [[row["what"], row["setting"], _spread(row), row["of_first"], _gigabytes(row["added_GB"])] for row in rows]
    return markdown_table(header, lines)


def faf_net(rows: Rows) -> str:
    lines = [
        [*_cells(row, "encoder", "support", "setting"), *_rounded(row, 1, "ms_per_slice"), row["times_faster"]]
        for row in rows
    ]
    return markdown_table(["encoder", "support", "setting", "ms per slice", "times faster"], lines)


def faf_net_episodes(rows: Rows) -> str:
    lines = [
        [*_cells(row, "encoder", "episode", "setting"), *_rounded(row, 0, "ms"), row["kept_times_faster"]]
        for row in rows
    ]
    header = ["encoder", "", "setting", "ms per episode", "kept descriptions, times faster"]
    return markdown_table(header, lines)


def supervoxels(rows: Rows) -> str:
    named = ("connectivity", "backend", "d_h_w", "segments")
    lines = [[*_cells(row, *named), *_rounded(row, 2, "seconds"), _gigabytes(row["extra_gb"])] for row in rows]
    return markdown_table(["connectivity", "backend", "volume", "segments", "seconds", "extra memory"], lines)


def planned_memory(rows: Rows) -> str:
    header = ["network", "patch", "saved, traced", "measured", "ratio"]
    header += ["patch of the planned step", "total, traced", "saved", "transient", "tracing time, s"]
    lines = [
        [
            *(row["network"], row["patch"], f"{row['traced_MB']} MB", f"{row['measured_MB']} MB"),
            *(row["traced_to_measured"], row["planned_patch"]),
            *(_gigabytes(row[f"{part}_GB"]) for part in ("planned", "saved", "transient")),
            row["trace_s"],
        ]
        for row in rows
    ]
    return markdown_table(header, lines)


def demo(rows: Rows) -> str:
    """One row per run of the demo, numbered through, with its machine: the runs are of several."""
    trainers = [key for key in rows[0] if key.startswith("dice_")]
    header = ["run", "processor", "seconds", "processor seconds", "peak memory, GB"]
    header += [f"Dice, {key.removeprefix('dice_')}" for key in trainers]
    columns = ("processor", "seconds", "processor_s", "peak_GB", *trainers)
    return markdown_table(header, [[str(i), *_cells(row, *columns)] for i, row in enumerate(rows, 1)])


def selective_scan_gpu(rows: Rows) -> str:
    header = ["b d n l", "", "kernel", "ms", "memory limit, ms", "exponential limit, ms", "times faster"]
    columns = ("b_d_n_l", "what", "backend", "milliseconds", "memory_limit_ms", "exponential_limit_ms")
    return markdown_table(header, [[row[key] for key in (*columns, "times_faster_than_mamba_ssm")] for row in rows])


def triton_code(rows: Rows) -> str:
    columns = ("kernel", "target", "steps", "registers", "stack_bytes", "instructions", "loads", "loads_of_four")
    columns += ("exponentials", "stores")
    return markdown_table([name.replace("_", " ") for name in columns], [_cells(row, *columns) for row in rows])


TABLES: dict[str, Callable[[Rows], str]] = {
    "networks_cpu": networks,
    "networks_2d_cpu": networks,
    "networks_baselines_cpu": networks,
    "networks_compiled_cpu": networks,
    "networks_compiled_3d_cpu": networks,
    "networks_cuda": networks,
    "scaling_cuda": scaling,
    "tiles_cuda": tiles,
    "transcriptions_cpu": transcriptions,
    "operators_cpu": operators,
    "scaling_cpu": scaling,
    "tiles_cpu": tiles,
    "selective_scan_cpu": selective_scan,
    "selective_scan_8192_cpu": selective_scan,
    "selective_scan_1x384x16x512_cpu": selective_scan,
    "selective_scan_gpu": selective_scan_gpu,
    "triton_code": triton_code,
    "sasan_cpu": sasan,
    "em_net_cpu": em_net,
    "faf_net_plain_cpu": plain,
    "u_mamba_cpu": u_mamba,
    "lstm_sa_cpu": lstm_sa,
    "faf_net_cpu": faf_net,
    "faf_net_episodes_cpu": faf_net_episodes,
    "supervoxels_cpu": supervoxels,
    "planned_memory_cpu": planned_memory,
    "planned_memory_cuda": planned_memory,
    "fine_tuning_cpu": fine_tuning,
    "few_shot_encoders_cpu": few_shot_encoders,
    "few_shot_hippocampus": few_shot,
    "demo_cpu": demo,
}
"""Tables by the name of their CSV file; the accuracy table is not here because it needs two files."""


def _cells(row: Row, *keys: str) -> list[str]:
    return [row[key] for key in keys]


def _rounded(row: Row, digits: int, *keys: str) -> list[str]:
    return [f"{float(row[key]):.{digits}f}" for key in keys]


def _spread(row: Row) -> str:
    """Median with lowest and highest in brackets."""
    digits = 3 if float(row["seconds"]) < 0.1 else 2
    median, low, high = (f"{float(row[key]):.{digits}f}" for key in ("seconds", "min_s", "max_s"))
    return f"{median} ({low} to {high})"


def _gigabytes(value: str) -> str:
    return f"{float(value):.2f} GB" if value else ""


def faster(times: str | float) -> str:
    """A speed ratio in words."""
    ratio = float(times)
    if 0.95 <= ratio <= 1.05:
        return "as fast"
    inverse, named = (ratio, "faster") if ratio > 1 else (1 / ratio, "slower")
    return f"{inverse:.0f} times {named}" if inverse >= 10 else f"{inverse:.1f} times {named}"


def _no_minus_zero(value: str) -> str:
    return f"{round(float(value), 2) + 0:.2f}"
