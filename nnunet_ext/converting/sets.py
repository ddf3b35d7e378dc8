"""The data sets of the few-shot literature that can be converted, each one an entry of a table."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PublicSet:
    """A public data set as its owners distribute it.

    Files are named by templates, relative to any folder above them: `{case}` stands for the identifier of a case and
    `*` for any name, so that a template with `*` describes one file per slice. `.nii` and `.nii.gz` stand for each
    other.

    Attributes:
        title: Name in the few-shot literature.
        prefix: First part of the names of converted cases, PREFIX_CASE.
        images: Template of the images that have labels.
        labels: Template of the label maps.
        test_images: Template of the images that may lack labels; None if all have them.
        channel: Name of the image's channel for nnU-Net, which normalises `CT` in its own way.
        values: Stored values of each label. The first label becomes 1, the second 2, and so on; 0 is background.
        cases: Number of cases in the published set, with and without labels.
        url: Page that describes the set and where it is obtained.
        licence: Licence, or the terms under which it is given.
        reference: Publication to cite.
    """

    title: str
    prefix: str
    images: str
    labels: str
    test_images: str | None
    channel: str
    values: Mapping[str, range]
    cases: int
    url: str
    licence: str
    reference: str

    @property
    def label_numbers(self) -> dict[str, int]:
        """`labels` of the converted dataset.json."""
        return {"background": 0} | {name: number for number, name in enumerate(self.values, start=1)}


def _each(stored: Mapping[str, int]) -> dict[str, range]:
    return {name: range(value, value + 1) for name, value in stored.items()}


def _in_order(*names: str) -> dict[str, range]:
    return _each({name: number for number, name in enumerate(names, start=1)})


SETS = {
    "synapse-ct": PublicSet(
        title="Synapse-CT",
        prefix="synapse",
        images="Training/img/img{case}.nii.gz",
        labels="Training/label/label{case}.nii.gz",
        test_images="Testing/img/img{case}.nii.gz",
        channel="CT",
        values=_in_order(
            "spleen",
            "right_kidney",
            "left_kidney",
            "gallbladder",
            "esophagus",
            "liver",
            "stomach",
            "aorta",
            "inferior_vena_cava",
            "portal_vein_and_splenic_vein",
            "pancreas",
            "right_adrenal_gland",
            "left_adrenal_gland",
        ),
        cases=50,
        url="https://www.synapse.org/#!Synapse:syn3193805/wiki/217789",
        licence="terms of use accepted on Synapse",
        reference="Landman et al., MICCAI multi-atlas labeling beyond the cranial vault - workshop and challenge, 2015",
    ),
    "chaos-mr": PublicSet(
        title="CHAOS-MRI (T2-SPIR)",
        prefix="chaos",
        images="Train_Sets/MR/{case}/T2SPIR/DICOM_anon/*.dcm",
        labels="Train_Sets/MR/{case}/T2SPIR/Ground/*.png",
        test_images="Test_Sets/MR/{case}/T2SPIR/DICOM_anon/*.dcm",
        channel="T2-SPIR",
        values={
            "liver": range(55, 71),
            "right_kidney": range(110, 136),
            "left_kidney": range(175, 201),
            "spleen": range(240, 256),
        },
        cases=40,
        url="https://chaos.grand-challenge.org/Data/",
        licence="CC-BY-NC-SA 4.0",
        reference="Kavur et al., CHAOS Challenge - combined (CT-MR) healthy abdominal organ segmentation, Medical "
        "Image Analysis 69 (2021) 101950; data: https://doi.org/10.5281/zenodo.3362844",
    ),
    "ms-cmrseg": PublicSet(
        title="MS-CMRSeg 2019 (bSSFP)",
        prefix="cmr",
        images="patient{case}_C0.nii.gz",
        labels="patient{case}_C0_manual.nii.gz",
        test_images="patient{case}_C0.nii.gz",
        channel="bSSFP",
        values=_each({"LV_MYO": 200, "LV_BP": 500, "RV": 600}),
        cases=45,
        url="https://zmiclab.github.io/zxh/0/mscmrseg19/",
        licence="terms accepted at registration",
        reference="Zhuang et al., Cardiac segmentation on late gadolinium enhancement MRI: a benchmark study from "
        "multi-sequence cardiac MR segmentation challenge, Medical Image Analysis 81 (2022) 102528",
    ),
    "prostate-mri": PublicSet(
        title="Prostate-MRI",
        prefix="prostate",
        images="data/{case}_img.nii",
        labels="data/{case}_mask.nii",
        test_images=None,
        channel="T2",
        values=_in_order(
            "bladder",
            "bone",
            "obturator_internus",
            "transition_zone",
            "central_gland",
            "rectum",
            "seminal_vesicle",
            "neurovascular_bundle",
        ),
        cases=589,
        url="https://zenodo.org/records/7013610",
        licence="as stated at https://zenodo.org/records/7013610",
        reference="Li et al., Prototypical few-shot segmentation for cross-institution male pelvic structures with "
        "spatial registration, Medical Image Analysis 90 (2023) 102935",
    ),
}
"""Data sets by their name on the command line."""
