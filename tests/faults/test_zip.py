"""A model's archive from elsewhere, installed by nnU-Net's own command: it writes below the results only."""

import stat
import zipfile


def test_an_archive_writes_nothing_outside_the_results(nnunet, tmp_path):
    outside, results = tmp_path / "outside", tmp_path / "nnUNet" / "results ü"
    for folder in (outside, results):
        folder.mkdir(parents=True)
    good = "Dataset004_Hippocampus/SASANTrainer__nnUNetPlans__3d_fullres/plans.json"
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr(good, "{}")
        for name in ("../above", "../../outside/above", str(outside / "absolute")):
            archive.writestr(name, "evil")
        archive.writestr(link, str(outside))
        archive.writestr("link/through", "evil")
    command = ("nnUNetv2_install_pretrained_model_from_zip", str(tmp_path / "model.zip"))
    nnunet.attempt(*command, nnUNet_results=str(results))  # the link's name is a file's, and cannot be a folder's too
    assert (results / good).read_text() == "{}"
    assert [path for path in tmp_path.rglob("*") if path.is_symlink()] == []
    written = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in written if results not in path.parents} == {tmp_path / "model.zip"}
