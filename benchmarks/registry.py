"""The registry of measurements: for every CSV file under benchmarks/results, the one command that writes it.

`python -m benchmarks`, the results page and the tables of other pages are generated from this list.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_TIMING = "--threads 1 --clock processor"
_BENCH = f"nnunet_ext bench --device cpu {_TIMING} -o benchmarks/results --what"
_PLACEHOLDERS = ("DATASET_FOLDER", "FOLDER", "PART.CSV")
_SIDE_BY_SIDE = (
    "parameters, multiply-adds, time and memory, side by side with nnU-Net's networks (FAF-Net runs slice by slice, "
    "with stored prototypes in the forward pass)"
)
_COMPILED = (
    "eager and compiled networks, side by side with nnU-Net's (nnU-Net compiles on GPUs only; in networks compiled for "
    "the CPU, PyTorch's operators replace all our C kernels except the scan's)"
)


@dataclass(frozen=True)
class Measurement:
    """A command and what it measures.

    Attributes:
        name: Name on the command line of `python -m benchmarks`.
        results: Names of the CSV files that it writes to benchmarks/results, without extension.
        line: Command line after ``python -m``; the user replaces the `_PLACEHOLDERS`.
        title: Heading on the results page.
        measured: Description as part of a sentence, without a full stop.
        cuda: Whether the measurement needs a CUDA device.
    """

    name: str
    results: tuple[str, ...]
    line: str
    title: str
    measured: str
    cuda: bool = False

    @property
    def command(self) -> list[str]:
        """The words of the command line after ``python -m``."""
        return self.line.split()

    @property
    def needs_data(self) -> bool:
        """Whether the command has placeholders to replace."""
        return any(word in _PLACEHOLDERS for word in self.command)

    @property
    def shown(self) -> str:
        """The command as a user types it."""
        return self.line if self.line.startswith("nnunet_ext ") else f"python -m {self.line}"


_MEASUREMENTS = (
    Measurement(
        "accuracy",
        ("accuracy_hippocampus", "accuracy_hippocampus_cases"),
        "benchmarks.accuracy --data DATASET_FOLDER --work FOLDER --name hippocampus",
        "Accuracy on hippocampus",
        "Dice of trainers on equal budgets, on one fold",
    ),
    Measurement(
        "accuracy_3000",
        ("accuracy_hippocampus_3000", "accuracy_hippocampus_3000_cases"),
        "benchmarks.accuracy --data DATASET_FOLDER --work FOLDER --name hippocampus_3000 --epochs 60 --repeats 3 "
        "--trainers StockTrainer SASANTrainer EMNetTrainer SASANTrainerDiceCE LSTMSATrainer EMNetNoMambaTrainer "
        "UMambaBotTrainer UMambaBotNoMambaTrainer MONAISegResNetTrainer",
        "Accuracy on hippocampus after 3000 iterations",
        "Dice of trainers on equal budgets, on one fold, three trainings each",
    ),
    Measurement(
        "accuracy_acdc",
        ("accuracy_acdc", "accuracy_acdc_cases"),
        "benchmarks.accuracy --data DATASET_FOLDER --work FOLDER --name acdc --spacing 10 3.125 3.125 "
        "--trainers StockTrainer StockAdamTrainer SASANTrainer LSTMSATrainer",
        "Accuracy on ACDC",
        "Dice of trainers on equal budgets, on one fold with separate patients, thick slices at half their resolution",
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
        "baselines",
        ("networks_baselines_cpu",),
        f"{_BENCH} networks --label baselines --patch 64 64 64 --repeats 3 --networks PlainConvUNet SASAN EM-Net "
        "--trainers MONAIUNetTrainer MONAIResUNetTrainer MONAIAttentionUNetTrainer MONAIUNetPlusPlusTrainer "
        "MONAIVNetTrainer MONAISegResNetTrainer MONAIHighResNetTrainer UNETRTrainer SwinUNETRTrainer MedNeXtTrainer "
        "MedNeXtBTrainer MedNeXtMTrainer MedNeXtLTrainer",
        "Networks that papers compare with",
        "parameters, multiply-adds, time and memory of MONAI's networks in 3D, beside nnU-Net's and two of ours",
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
        "the same on a GPU, eager and compiled, including scaling with the patch size and prediction",
        cuda=True,
    ),
    Measurement(
        "transcriptions",
        ("transcriptions_cpu",),
        f"benchmarks.transcriptions --patch 32 32 32 {_TIMING}",
        "Networks against naive reference implementations",
        "each network against a naive implementation of the paper's formulas, with the same weights and logits",
    ),
    Measurement(
        "operators",
        ("operators_cpu",),
        f"{_BENCH} operators --networks PlainConvUNet SASAN EM-Net SALSTM LSTMSA FAF-Net",
        "Training steps against their convolutions alone",
        "a training step, with freed memory kept as in our trainings, against its convolutions and matrix products "
        "alone, in the kernels and layouts that it uses (these include neither SASAN's attention between its "
        "projections nor EM-Net's scans)",
    ),
    Measurement(
        "scaling",
        ("scaling_cpu",),
        f"{_BENCH} scaling --sizes 32 48 64 96 128 160 --batch-size 1 --repeats 3",
        "Time and memory against the patch size",
        "a training step against the number of voxels, on the topology that nnU-Net plans for the smallest patch, with "
        "exponents fitted to the three largest patches (LSTM-SA's memory curve bends where checkpointing begins)",
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
        "selective_scan_wide",
        ("selective_scan_1x384x16x512_cpu",),
        f"benchmarks.selective_scan --sizes 1 384 16 --length 512 --repeats 21 {_TIMING}",
        "The selective scan with many channels on a short sequence",
        "our backends against the package mambapy's parallel scan and a loop over positions",
    ),
    Measurement(
        "selective_scan_gpu",
        ("selective_scan_gpu",),
        "benchmarks.selective_scan_gpu",
        "The selective scan on CUDA",
        "our Triton kernels against mamba_ssm's, if it is installed, and against the device's limits",
        cuda=True,
    ),
    Measurement(
        "triton_code",
        ("triton_code",),
        "benchmarks.triton_code",
        "Code of the Triton kernels",
        "the kernels of the selective scan and of Mamba's convolution, compiled for an H100 without running them: "
        "registers of a thread, its stack (spilled registers), and instructions, whose loops cover the steps given",
    ),
    Measurement(
        "sasan",
        ("sasan_cpu",),
        f"benchmarks.sasan {_TIMING} --repeats 3",
        "SASAN at the paper's setting",
        "network and SM loss against naive reference implementations",
    ),
    Measurement(
        "em_net",
        ("em_net_cpu",),
        f"benchmarks.em_net {_TIMING}",
        "EM-Net and its scan's share of the time",
        "EM-Net with the scan computed by each backend, and with the scan replaced by a multiplication",
    ),
    Measurement(
        "u_mamba",
        ("u_mamba_cpu",),
        f"benchmarks.u_mamba {_TIMING} --repeats 3",
        "U-Mamba and its scan",
        "a forward pass of UMambaEnc with our scan, and with that of the package mambapy",
    ),
    Measurement(
        "lstm_sa",
        ("lstm_sa_cpu",),
        f"benchmarks.lstm_sa {_TIMING} --repeats 3",
        "LSTMSA's training step",
        "with and without checkpointed slices and our convolutions, against its convolutions and products alone and "
        "nnU-Net's step, and a stack of slices against the naive reference",
    ),
    Measurement(
        "faf_net",
        ("faf_net_cpu",),
        f"benchmarks.faf_net --seconds 30 {_TIMING}",
        "FAF-Net's prediction",
        "stored prototypes against encoding the support anew for every slice",
    ),
    Measurement(
        "faf_net_episodes",
        ("faf_net_episodes_cpu",),
        f"benchmarks.faf_net_episodes {_TIMING} --repeats 5",
        "FAF-Net's episodes on encoders of timm",
        "an episode and its optimiser step, with the encoder in the loop and with a frozen encoder's descriptions kept",
    ),
    Measurement(
        "faf_net_plain",
        ("faf_net_plain_cpu",),
        f"benchmarks.faf_net --plain {_TIMING}",
        "FAF-Net against its naive reference implementation",
        "prediction and a training episode against a naive implementation, which encodes the support for every slice",
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
        "the traced memory of a training step against the memory that saved-tensor hooks count in a real one",
    ),
    Measurement(
        "planned_memory_cuda",
        ("planned_memory_cuda",),
        "benchmarks.planned_memory --device cuda",
        "Planned memory on CUDA",
        "the traced memory of a training step against the peak memory of a real one",
        cuda=True,
    ),
    Measurement(
        "demo",
        ("demo_cpu",),
        "benchmarks.demo --runs 10",
        "The demo",
        "`nnunet_ext demo` from raw scans to the report, with new random numbers in every run: time, memory and the "
        "mean foreground Dice of the validation cases",
    ),
    Measurement(
        "fine_tuning",
        ("fine_tuning_cpu",),
        "benchmarks.fine_tuning --hippocampus DATASET_FOLDER --acdc DATASET_FOLDER --work FOLDER",
        "Fine-tuning",
        "nnU-Net's mean validation Dice on hippocampus at 2 mm, fold 0, from scratch and from weights that `nnunet_ext "
        "adapt-weights` carried over",
    ),
    Measurement(
        "few_shot_encoders",
        ("few_shot_encoders_cpu",),
        "benchmarks.few_shot_encoders --data DATASET_FOLDER --work FOLDER --encoder-weights FILE",
        "Few-shot segmentation with pretrained encoders",
        "the papers' protocol, `nnunet_ext fewshot --protocol paper`, with EfficientNet-Lite0 and ImageNet's weights, "
        "frozen or trained with the rest: mean Dice over cases and supports",
    ),
    Measurement(
        "few_shot",
        ("few_shot_hippocampus",),
        "benchmarks.few_shot --model FOLDER --raw DATASET_FOLDER --preprocessed DATASET_FOLDER --label 2",
        "Few-shot segmentation",
        "Dice of a class segmented from one labelled scan",
    ),
    Measurement(
        "compare_simulation",
        ("compare_simulation",),
        "benchmarks.compare_simulation",
        "Verdicts without a true difference",
        "how often `nnunet_ext compare` finds a difference that does not exist, and how often its interval covers zero",
    ),
    Measurement(
        "feature_matrix",
        ("feature_matrix",),
        "benchmarks.page.feature_matrix PART.CSV",
        "What works with which trainer",
        "outcomes of the tests of nnU-Net's features",
    ),
)

MEASUREMENTS: Mapping[str, Measurement] = {measurement.name: measurement for measurement in _MEASUREMENTS}


def measurement_of(result: str) -> Measurement:
    """The measurement that writes a CSV file.

    Raises:
        KeyError: if no command writes this file.
    """
    for measurement in MEASUREMENTS.values():
        if result in measurement.results:
            return measurement
    raise KeyError(f"no command in benchmarks/registry.py writes benchmarks/results/{result}.csv")
