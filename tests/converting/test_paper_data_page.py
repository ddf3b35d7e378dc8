"""docs/paper_data.md: its facts are those of the table of sets, and its commands run on made-up trees."""

import csv
import json
import re

import pytest

from nnunet_ext.converting.sets import SETS
from nnunet_ext.nnunet.groups import read_groups
from tests.helpers.pages import block, blocks, page
from tests.helpers.public_sets import TREES, prostate
from tests.helpers.shell import bash
from tests.helpers.workspaces import nnunet_variables

PAGE = page("paper_data")
FOLDERS = {"synapse-ct": "", "chaos-mr": "CHAOS", "ms-cmrseg": "MSCMRSeg", "prostate-mri": "prostate"}
"""SOURCE in the page's commands; the tree of Synapse-CT makes its RawData itself."""


def section(name):
    """The part of the page on a set."""
    return next(part for part in re.split(r"^## ", PAGE, flags=re.M) if part.startswith(SETS[name].title))


@pytest.mark.parametrize("name", SETS)
def test_it_says_what_the_table_of_sets_says(name):
    public, said = SETS[name], section(name)
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    assert public.url in row
    assert row.endswith(f"| {public.licence} |")
    assert str(public.cases) in row or sum(map(int, re.findall(r"(\d+) (?:labelled|without)", row))) == public.cases
    layouts = block(said, "text", "\n").splitlines()
    for template in filter(None, (public.images, public.labels, public.test_images)):
        pattern = re.escape(template).replace(r"\{case\}", r"\w+").replace(r"\*", ".+")
        assert any(re.search(f"/{pattern}$", line) for line in layouts), template
    for number, (label, stored) in enumerate(public.values.items(), start=1):
        value = str(stored.start) if len(stored) == 1 else f"{stored.start} to {stored.stop - 1}"
        assert re.search(rf"{value}\s{label}\b", said)
        assert value == str(number) or f"{label} ({number})" in said or f"({number} in the converted maps)" in said
    tested = re.findall(r"--test-classes ([\w ]+?) -o", said)
    assert tested
    assert {label for classes in tested for label in classes.split()} <= set(public.values)


def test_the_institutions_become_groups(tmp_path):
    prostate(tmp_path / "prostate")
    bash(block(PAGE, "bash", "sed"), {"PATH": "/usr/bin:/bin"}, tmp_path)
    with (tmp_path / "institutions.csv").open() as file:
        assert list(csv.reader(file)) == [["prostate_000001", "UCL"], ["prostate_000002", "Nijmegen"]]
    found = read_groups(str(tmp_path / "institutions.csv"), ["prostate_000002", "prostate_000001"])
    assert found == {"prostate_000002": "Nijmegen", "prostate_000001": "UCL"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_nnunet_plans_and_preprocesses_it(name, tmp_path):
    """The page's commands as they are written, integrity check included."""
    TREES[name](tmp_path / FOLDERS[name], shape=(12, 32, 40))
    for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / folder).mkdir()
    (script,) = [one for one in blocks(PAGE, "bash") if f"convert {name}" in one]
    script = script.replace(" --verify", " -npfp 1 -np 1 --verify")  # nnU-Net starts eight processes, seconds each
    printed = bash(script, nnunet_variables(tmp_path), tmp_path)
    assert "Wrote 2 labelled cases" in printed
    (preprocessed,) = (tmp_path / "nnUNet_preprocessed").iterdir()
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    cases = list((preprocessed / plans["configurations"]["3d_fullres"]["data_identifier"]).glob("*.pkl"))
    assert len(cases) == 2
