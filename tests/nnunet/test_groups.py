"""Groups of cases: from a table, from a regular expression, and those that names suggest."""

import pytest

from nnunet_ext.nnunet.groups import groups_from_names, read_groups

FRAMES = ["patient001_frame01", "patient001_frame12", "patient002_frame01"]
PATIENTS = dict(zip(FRAMES, ["patient001", "patient001", "patient002"], strict=True))


@pytest.mark.parametrize("header", ["", "case,group\n", "Case,patient\n", "\ufeffcase,site\n"])
def test_a_table_gives_the_groups(tmp_path, header):
    file = tmp_path / "groups.csv"
    rows = "".join(f"{case}, {group}\n" for case, group in PATIENTS.items())
    file.write_text(f"{header}{rows}\nanother,patient009\n", encoding="utf-8")
    assert read_groups(str(file), FRAMES) == PATIENTS


@pytest.mark.parametrize("expression", [r"^(patient\d+)_", r"patient\d+", r"(?:patient)\d{3}"])
def test_an_expression_gives_the_groups(expression):
    assert read_groups(expression, FRAMES) == PATIENTS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient001_frame01,a\n", r"groups\.csv has no group for patient001_frame12, patient002_frame01"),
        ("patient001_frame01\n", r"groups\.csv, line 1: 'patient001_frame01' must be `case,group`"),
        ("patient001_frame01,a\npatient001_frame01,b\n", r"line 2: patient001_frame01 is in the groups a and b"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, text, message):
    file = tmp_path / "groups.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_groups(str(file), FRAMES)


def test_a_table_that_is_not_text_is_refused(tmp_path):
    file = tmp_path / "groups.csv"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        read_groups(str(file), FRAMES)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file: .*nothing\.csv"):
        read_groups(str(tmp_path / "nothing.csv"), FRAMES)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        (r"(patient001)_", r"'\(patient001\)_' finds no group in patient002_frame01"),
        (r"(patient", r"neither a file nor a valid regular expression"),
        (r"(x)?patient", r"finds no group in patient001_frame01"),
    ],
)
def test_expressions_that_do_not_fit_are_refused(expression, message):
    with pytest.raises(ValueError, match=message):
        read_groups(expression, FRAMES)


@pytest.mark.parametrize(
    "names",
    [
        FRAMES,
        ["sub-01_ses-1", "sub-01_ses-2", "sub-02_ses-1"],
        ["case12_03", "case12_04", "case13_01"],
        ["P01_v1", "P01_v2", "P02_v1"],
        ["001_ED", "001_ES", "002_ED"],
    ],
)
def test_names_that_look_grouped(names):
    found = groups_from_names(names)
    assert found is not None
    assert list(found) == names
    assert found[names[0]] == found[names[1]] != found[names[2]]


@pytest.mark.parametrize(
    "names",
    [
        ["hippocampus_001", "hippocampus_003"],
        ["BraTS2021_00001", "BraTS2021_00002"],
        ["0001", "0002"],
        ["case_00012", "case_00013"],
        ["a1b2", "a1b3", "c4d5"],
        ["patient001_frame01", "patient002_frame01"],
        [],
    ],
)
def test_names_that_do_not(names):
    assert groups_from_names(names) is None
