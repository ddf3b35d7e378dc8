"""What is measured: for every CSV file under benchmarks/results the one command that makes it.

`python -m benchmarks`, the page of results and the README go by this list.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_TIMING = "--threads 1 --clock processor"
_BENCH = f"nnunet_ext bench --device cpu {_TIMING} -o benchmarks/results --what"
_PLACEHOLDERS = ("DATASET_FOLDER", "FOLDER", "PART.CSV")
_SIDE_BY_SIDE = (
    "parameters, multiply-adds, time and memory side by side with nnU-Net's networks (FAF-Net: slice by slice, forward "
    "from stored prototypes)"
)
_COMPILED = (
    "networks as they are and compiled, side by side with nnU-Net's (nnU-Net compiles on GPUs only; compiled for the "
    "CPU, PyTorch's operators take the place of our C kernels but the scan's)"
)


@dataclass(frozen=True)
class Measurement:
    """A command and what it measures.

    Attributes:
        name: As `python -m benchmarks` takes it.
        results: Names of the CSV files under benchmarks/results that it writes, without ending.
        line: What stands behind ``python -m``; `_PLACEHOLDERS` are the user's to fill in.
        title: In the page's headings.
        measured: One sentence's part, without full stop.
        cuda: Whether it needs a CUDA device.
    """

    name: str
    results: tuple[str, ...]
    line: str
    title: str
    measured: str
    cuda: bool = False

    @property
    def command(self) -> list[str]:
        """What stands behind ``python -m``, word by word."""
        return self.line.split()

    @property
    def needs_data(self) -> bool:
        """Whether something must be filled in."""
        return any(word in _PLACEHOLDERS for word in self.command)

    @property
    def shown(self) -> str:
        """The command as one types it."""
        return self.line if self.line.startswith("nnunet_ext ") else f"python -m {self.line}"


_MEASUREMENTS = (
    Measurement(
        "accuracy",
        ("accuracy_hippocampus", "accuracy_hippocampus_cases"),
        "benchmarks.accuracy --data DATASET_FOLDER --work FOLDER --name hippocampus",
        "Accuracy on hippocampus",
        "Dice of trainers under one budget on one fold",
    ),
    Measurement(
        "accuracy_acdc",
        ("accuracy_acdc", "accuracy_acdc_cases"),
        "benchmarks.accuracy --data DATASET_FOLDER --work FOLDER --name acdc --spacing 10 3.125 3.125 "
        "--trainers StockTrainer SASANTrainer LSTMSATrainer",
        "Accuracy on ACDC",
        "Dice of trainers under one budget on one fold of other patients, thick slices at half of their resolution",
    ),
    Measurement(
        "networks",
        ("networks_cpu",),
        f"{_BENCH} networks --patch 40 56 40 --precisions float32 autocast",
        "Networks in 3D",
        _SIDE_BY_SIDE,
    ),
    Measurement(
        "networks_2d",
        ("networks_2d_cpu",),
        f"{_BENCH} networks --label 2d --patch 96 96 --batch-size 4 --precisions float32 autocast",
        "Networks in 2D",
        _SIDE_BY_SIDE,
    ),
    Measurement(
        "networks_compiled",
        ("networks_compiled_cpu",),
        f"{_BENCH} networks --label compiled --patch 96 96 --batch-size 4 --modes eager compiled",
        "torch.compile in 2D",
        _COMPILED,
    ),
    Measurement(
        "networks_compiled_3d",
        ("networks_compiled_3d_cpu",),
        f"{_BENCH} networks --label compiled_3d --patch 40 56 40 --modes eager compiled",
        "torch.compile in 3D",
        _COMPILED,
    ),
    Measurement(
        "networks_cuda",
        ("networks_cuda", "scaling_cuda", "tiles_cuda"),
        "nnunet_ext bench --device cuda -o benchmarks/results --what networks scaling tiles --patch 128 128 128 "
        "--precisions float32 autocast --modes eager compiled --sizes 64 96 128",
        "Networks on CUDA",
        "the same on a GPU, eager and compiled, growth with the patch and prediction included",
        cuda=True,
    ),
    Measurement(
        "transcriptions",
        ("transcriptions_cpu",),
        f"benchmarks.transcriptions --patch 32 32 32 {_TIMING}",
        "Networks against plain transcriptions of their formulas",
        "each network against the formulas as the paper has them, same weights and logits",
    ),
    Measurement(
        "operators",
        ("operators_cpu",),
        f"{_BENCH} operators --networks PlainConvUNet SASAN EM-Net SALSTM LSTMSA FAF-Net",
        "Training steps against their convolutions alone",
        "a training step against its convolutions and matrix products by themselves, in the kernels and layouts that "
        "it uses (SASAN's attention between its projections and EM-Net's scans are none of them)",
    ),
    Measurement(
        "scaling",
        ("scaling_cpu",),
        f"{_BENCH} scaling --sizes 32 48 64 96 128 160 --batch-size 1 --repeats 3",
        "Time and memory against the patch",
        "a training step against the number of voxels, on the topology that nnU-Net plans for the smallest patch, with "
        "the exponents that fit best to the three largest (LSTM-SA's memory bends where it begins to checkpoint)",
    ),
    Measurement(
        "tiles",
        ("tiles_cpu",),
        f"{_BENCH} tiles --patch 40 56 40",
        "Prediction against the number of tiles",
        "nnU-Net's sliding-window prediction of one scan",
    ),
    Measurement(
        "selective_scan",
        ("selective_scan_cpu",),
        f"benchmarks.selective_scan --methods mambapy extension segments {_TIMING}",
        "The selective scan",
        "our backends against the package mambapy's parallel scan",
    ),
    Measurement(
        "selective_scan_loop",
        ("selective_scan_8192_cpu",),
        f"benchmarks.selective_scan --length 8192 {_TIMING}",
        "The selective scan on shorter sequences, and a loop over time",
        "our backends against the package mambapy's parallel scan and a loop over positions",
    ),
    Measurement(
        "selective_scan_gpu",
        ("selective_scan_gpu",),
        "benchmarks.selective_scan_gpu",
        "The selective scan on CUDA",
        "our Triton kernels against mamba_ssm's, where it is installed, and against the device's limits",
        cuda=True,
    ),
    Measurement(
        "sasan",
        ("sasan_cpu",),
        f"benchmarks.sasan {_TIMING} --repeats 3",
        "SASAN at the paper's setting",
        "network and SM loss against a plain transcription of their formulas",
    ),
    Measurement(
        "em_net",
        ("em_net_cpu",),
        f"benchmarks.em_net {_TIMING}",
        "EM-Net and its scan's part",
        "EM-Net with the scan by each backend, and replaced by a multiplication",
    ),
    Measurement(
        "lstm_sa",
        ("lstm_sa_cpu",),
        f"benchmarks.lstm_sa {_TIMING} --repeats 3",
        "Checkpointing LSTMSA",
        "forward and backward pass of a training step, slices checkpointed or not",
    ),
    Measurement(
        "gaussian_attention",
        ("gaussian_attention_cpu",),
        f"benchmarks.gaussian_attention {_TIMING}",
        "MT-UNet's Gaussian axial attention",
        "all positions at once against a loop over positions",
    ),
    Measurement(
        "faf_net",
        ("faf_net_cpu",),
        f"benchmarks.faf_net --seconds 30 {_TIMING}",
        "FAF-Net's prediction",
        "stored prototypes against encoding the support again for every slice",
    ),
    Measurement(
        "faf_net_plain",
        ("faf_net_plain_cpu",),
        f"benchmarks.faf_net --plain {_TIMING}",
        "FAF-Net against a plain transcription",
        "prediction and a training episode against the formulas, which encode the support again for every slice",
    ),
    Measurement(
        "supervoxels",
        ("supervoxels_cpu",),
        "benchmarks.supervoxels --clock processor",
        "Supervoxels",
        "the C extension against NumPy on one volume",
    ),
    Measurement(
        "planned_memory",
        ("planned_memory_cpu",),
        "benchmarks.planned_memory",
        "Planned memory",
        "the traced memory of a training step against what saved-tensor hooks count in a real one",
    ),
    Measurement(
        "planned_memory_cuda",
        ("planned_memory_cuda",),
        "benchmarks.planned_memory --device cuda",
        "Planned memory on CUDA",
        "the traced memory of a training step against what a real one takes",
        cuda=True,
    ),
    Measurement(
        "few_shot",
        ("few_shot_hippocampus",),
        "benchmarks.few_shot --model FOLDER --raw DATASET_FOLDER --preprocessed DATASET_FOLDER --label 2",
        "Few-shot segmentation",
        "Dice of a class found in scans from one labelled scan",
    ),
    Measurement(
        "feature_matrix",
        ("feature_matrix",),
        "benchmarks.page.feature_matrix PART.CSV",
        "What works with which trainer",
        "what the tests of nnU-Net's features found",
    ),
)

MEASUREMENTS: Mapping[str, Measurement] = {measurement.name: measurement for measurement in _MEASUREMENTS}


def measurement_of(result: str) -> Measurement:
    """What makes a CSV file.

    Raises:
        KeyError: for a file that no command makes.
    """
    for measurement in MEASUREMENTS.values():
        if result in measurement.results:
            return measurement
    raise KeyError(f"benchmarks/results/{result}.csv is made by no command of benchmarks/registry.py")
