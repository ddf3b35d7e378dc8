"""docs/dicom.md: a made-up CT series to NIfTI, and a mask back to DICOM SEG."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk

from tests.helpers.pages import block, page
from tests.helpers.shell import bash

hd = pytest.importorskip("highdicom")
pydicom = pytest.importorskip("pydicom")
pytest.importorskip("dcm2niix")
SHAPE, SPACING, ORIGIN = (9, 20, 24), (3.0, 0.8, 0.6), (-40.0, 12.0, 100.0)


def organ():
    """Two objects of the series, labels 1 and 2, in the order of slice positions: not symmetric along any axis."""
    z, y, x = np.indices(SHAPE)
    labels = ((z - 3) ** 2 + (y - 6) ** 2 / 4 + (x - 8) ** 2 / 9 < 4).astype(np.uint8)
    labels[6:8, 12:17, 3:9] = 2
    return labels


def write_series(folder):
    """Slices as CT images; their numbers and file names run against the position."""
    folder.mkdir()
    series, study, frame = (pydicom.uid.generate_uid() for _ in range(3))
    values = organ().astype(np.int16) * 200 - 100
    for index, image in enumerate(values):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        data = pydicom.Dataset()
        data.file_meta = meta
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.PatientID, data.PatientName, data.PatientBirthDate, data.PatientSex = "anonymous", "A^B", "", ""
        data.StudyDate = data.SeriesDate = data.ContentDate = data.AcquisitionDate = "20260101"
        data.StudyTime = data.SeriesTime = data.ContentTime = data.AcquisitionTime = "120000"
        data.Modality, data.Manufacturer, data.StudyID, data.AccessionNumber = "CT", "Made up", "1", ""
        data.ReferringPhysicianName, data.PositionReferenceIndicator = "", ""
        data.SeriesNumber, data.InstanceNumber = 7, SHAPE[0] - index
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + index * SPACING[0]]
        data.PixelSpacing, data.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
        data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = *SHAPE[1:], 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleIntercept, data.RescaleSlope = 0, 1
        data.PixelData = image.tobytes()
        data.save_as(folder / f"{SHAPE[0] - index:03d}.dcm", enforce_file_format=True)


def test_a_series_becomes_a_scan_and_its_mask_a_segmentation(tmp_path):
    write_series(tmp_path / "dicom")
    (tmp_path / "scans").mkdir()
    bash(next(line for line in page("dicom").splitlines() if line.startswith("    dcm2niix")), os.environ, tmp_path)
    (scan,) = (tmp_path / "scans").glob("*.nii.gz")
    assert scan.name == "anonymous_7.nii.gz"
    image = sitk.ReadImage(str(scan))
    assert image.GetSpacing() == pytest.approx(SPACING[::-1], abs=1e-5)
    mask = sitk.Cast((image + 100) / 200, sitk.sitkUInt8)  # what a perfect model predicts
    sitk.WriteImage(mask, str(tmp_path / "mask.nii.gz"))
    dataset = {"labels": {"background": 0, "organ": 1, "block": 2}}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    (tmp_path / "to_dicom_seg.py").write_text(block(page("dicom"), "python", "highdicom"))
    arguments = ["to_dicom_seg.py", "dicom", "mask.nii.gz", "dataset.json", "mask.dcm"]
    subprocess.run([sys.executable, *arguments], cwd=tmp_path, check=True)

    segmentation = hd.seg.segread(tmp_path / "mask.dcm")
    described = [segmentation.get_segment_description(number).segment_label for number in (1, 2)]
    assert described == ["organ", "block"]
    slices = sorted((pydicom.dcmread(file) for file in (tmp_path / "dicom").iterdir()), key=position)
    found = segmentation.get_pixels_by_source_instance([data.SOPInstanceUID for data in slices], combine_segments=True)
    np.testing.assert_array_equal(found, organ())


def position(data):
    return data.ImagePositionPatient[2]
