"""The features page shows the tests' outcomes for all trainers and features, and every cell that ran has passed."""

from benchmarks.page import feature_matrix
from benchmarks.page.feature_matrix import FEATURES, INTEGRATION, PAGE, PASSED, RESULTS, TRAINERS
from nnunet_ext.networks import NETWORKS
from tests.features.cells import CELLS


def test_the_page_is_made_of_the_committed_results():
    assert PAGE.read_text() == feature_matrix.page(feature_matrix.read(RESULTS))


def test_every_cell_that_was_run_passed():
    """Cells that were not run show a question mark on the page, which states their number."""
    cells = feature_matrix.read(RESULTS)
    assert set(cells) <= set(feature_matrix.expected_cells())
    assert {key: cell.outcome for key, cell in cells.items() if cell.outcome != PASSED} == {}
    missing = len(feature_matrix.expected_cells()) - len(cells)
    assert PAGE.read_text().count("| ?") == missing
    assert (f"{missing} cells have not been run yet" in PAGE.read_text()) == (missing > 0)


def test_every_network_and_every_feature_has_a_test():
    assert set(CELLS) == set(FEATURES)
    assert not set(FEATURES) & set(INTEGRATION)
    for info in NETWORKS.values():
        assert set(info.trainers) & set(TRAINERS), info.name


def test_cells_are_written_replaced_and_ordered(tmp_path):
    file = tmp_path / "part.csv"
    for trainer, outcome in (("EMNetTrainer", "failed"), ("SASANTrainer", PASSED), ("EMNetTrainer", PASSED)):
        feature_matrix.append(file, feature_matrix.cell(trainer, "2d", outcome, 1.25, "commands"))
    cells = feature_matrix.read(file)
    assert {key: cell.outcome for key, cell in cells.items()} == {
        ("EMNetTrainer", "2d"): PASSED,
        ("SASANTrainer", "2d"): PASSED,
    }
    feature_matrix.write(file, cells.values())
    assert list(feature_matrix.read(file)) == [("SASANTrainer", "2d"), ("EMNetTrainer", "2d")]
    row, of_baselines = [line for line in feature_matrix.page(cells).splitlines() if line.startswith("| `2d` ")]
    assert row == "| `2d` | ✓ | ? | ✓ | ? | ? | ? | ? | ? |"
    assert of_baselines == "| `2d` |" + " ? |" * len(feature_matrix.BASELINES)
