"""Package definition; build system and tools are configured in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "nnunet_ext" / "__init__.py").read_text()).group(1)

setup(
    name="nnunet_ext",
    version=VERSION,
    description="SASAN and other published segmentation networks as trainers for nnU-Net v2",
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
        "nnunet_ext.data.hippocampus": ["*.md", "*.json", "*/*.nii.gz"],
    },
    entry_points={"console_scripts": ["nnunet_ext = nnunet_ext.cli.main:main"]},
    install_requires=[
        "nnunetv2>=2.8",  # first with nnUNet_extTrainer
        "torch>=2.5",  # nn.Module.register_load_state_dict_pre_hook
        "batchgenerators>=0.25.1",  # as nnunetv2
        "SimpleITK>=2.2.1",  # as nnunetv2
        "numpy>=1.24",  # as nnunetv2
        # Come with nnunetv2 without a bound; named because the demo imports them.
        "matplotlib",
        "tqdm",
    ],
    extras_require={
        "mamba": ["mamba-ssm", "causal-conv1d"],
        "surface": ["surface-distance"],
        "test": [
            "pytest>=8.0",  # strict configuration
            "hypothesis>=6.100",  # property-based tests
            "build>=1.0",  # the wheel test
            "setuptools>=77",  # the wheel test builds without isolation
            "ruff>=0.6",
            "mypy>=1.11",
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Programming Language :: Python :: 3",
    ],
)
