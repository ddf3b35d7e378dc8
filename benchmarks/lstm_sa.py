"""LSTMSA over a volume against slice by slice: time on the CPU; and what checkpointing does to the memory.

python -m benchmarks.lstm_sa [--threads 2] [--repeats 5]
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.measure import interleaved_seconds, median_ratio, peak_gigabytes, write_rows
from benchmarks.plain_lstm_sa import plain_volume
from nnunet_ext.networks import LSTMSA

_PATCH = (16, 96, 96)
_WIDTHS = (64, 128, 256)
_SETTING = "16 slices of 96x96, batch 1, features 64 128 256"
_TRAINING = "40x56x40, batch 2, features 32 64 128 256"


def _network(patch: tuple[int, ...], widths: tuple[int, ...], **settings: object) -> LSTMSA:
    torch.manual_seed(0)
    return LSTMSA(
        1,
        3,
        patch,
        len(widths),
        widths,
        nn.Conv3d,
        kernel_sizes=3,
        strides=2,
        **settings,  # type: ignore[arg-type]
    )


def _prepare(form: str, backward: bool) -> Callable[[], object]:
    network = _network(_PATCH, _WIDTHS, checkpoint_slices=0)
    image = torch.randn(1, 1, *_PATCH)
    run = network if form == "volume" else partial(plain_volume, network)

    def forward() -> Tensor:
        with torch.no_grad():
            return run(image)

    def step() -> Tensor:
        loss = run(image).square().mean()
        loss.backward()
        return loss

    return step if backward else forward


def prepare_training_step(checkpoint_slices: int) -> Callable[[], object]:
    """A step as LSTMSATrainer takes it on hippocampus, with deep supervision."""
    network = _network((40, 56, 40), (32, 64, 128, 256), checkpoint_slices=checkpoint_slices, deep_supervision=True)
    image = torch.randn(2, 1, 40, 56, 40)
    return lambda: sum(y.square().mean() for y in network(image)).backward()


def _check_equal() -> None:
    ours, plain = (_prepare(form, False)() for form in ("volume", "slices"))
    error = ((ours - plain).abs().max() / plain.abs().max()).item()
    if error > 1e-4:
        raise RuntimeError(f"the two forms differ by {error:.1e}: nothing to compare")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    fixed = {"precision": "float32", "seed": 0}
    rows = []
    memory = {chunk: peak_gigabytes(partial(prepare_training_step, chunk))[0] for chunk in (0, 8, 2)}
    times = interleaved_seconds({str(c): prepare_training_step(c) for c in memory}, max(3, arguments.repeats // 2))
    for chunk, added in memory.items():
        what = "training step, " + (f"checkpointed by {chunk} slices" if chunk else "not checkpointed")
        seconds = times[str(chunk)]
        rows.append(
            {"what": what, "setting": _TRAINING, **fixed}
            | {"volume_s": f"{statistics.median(seconds):.2f}", "slices_s": "", "times_faster": ""}
            | {"added_GB": f"{added:.2f}"}
        )
    _check_equal()
    for what, backward in (("forward", False), ("forward + backward", True)):
        forms = {form: _prepare(form, backward) for form in ("volume", "slices")}
        times = interleaved_seconds(forms, arguments.repeats)
        rows.append(
            {"what": what, "setting": _SETTING, **fixed}
            | {f"{form}_s": f"{statistics.median(times[form]):.2f}" for form in forms}
            | {"times_faster": f"{median_ratio(times['slices'], times['volume']):.2f}", "added_GB": ""}
        )
    write_rows("lstm_sa_cpu", rows)


if __name__ == "__main__":
    main()
