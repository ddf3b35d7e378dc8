"""Published weights for the network that a trainer builds from a plan."""

import pytest
import torch

from nnunet_ext.cli.main import main
from nnunet_ext.nnunet.plan_settings import read_plan
from nnunet_ext.nnunet.trainers import find_trainer
from tests.helpers.own_trainers import write_own_trainers


@pytest.fixture
def published(nnunet, tmp_path, monkeypatch):
    """A function that writes the weights of a new network under other names, and imports them for a trainer."""
    monkeypatch.setenv("nnUNet_extTrainer", write_own_trainers(tmp_path / "mine"))
    weights = read_plan(nnunet.plans_file, "3d_fullres").network(find_trainer("HalvingTrainer"), True).state_dict()

    def run(trainer, *options, prefix="", without=(), **changed):
        theirs = {f"{prefix}{k}": v for k, v in (weights | changed).items() if k not in without}
        torch.save({"state_dict": theirs}, tmp_path / "theirs.pth")
        files = str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")
        code = main(["import-weights", trainer, *files, "--plans", str(nnunet.plans_file), *options])
        return code, weights, tmp_path / "ours.pth"

    return run


@pytest.mark.parametrize(("trainer", "prefix"), [("HalvingTrainer", ""), ("TranslatingTrainer", "theirs.")])
def test_weights_arrive_under_the_networks_names(published, trainer, prefix, capsys, nnunet):
    code, weights, file = published(trainer, prefix=prefix)
    assert code == 0
    written = torch.load(file, weights_only=True)["network_weights"]
    assert written.keys() == weights.keys()
    assert all(torch.equal(written[name], value) for name, value in weights.items())
    assert f"-tr {trainer} -p {nnunet.plans_file.stem} -pretrained_weights" in capsys.readouterr().out


def test_named_weights_keep_their_initial_values(published):
    code, weights, file = published("HalvingTrainer", "--initial", "fine", **{"fine.bias": torch.zeros(7)})
    assert code == 0
    written = torch.load(file, weights_only=True)["network_weights"]
    assert torch.equal(written["down.weight"], weights["down.weight"])
    assert written["fine.bias"].shape == weights["fine.bias"].shape


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ((), {"prefix": "theirs."}, "missing: down.weight, down.bias, up.weight and 5 more; unexpected: theirs.down"),
        ((), {"without": ["fine.bias"]}, "missing: fine.bias. Other names are translated by a static method"),
        ((), {"fine.bias": torch.zeros(7)}, "of another shape: fine.bias (7 instead of 3)"),
        (("--initial", "head"), {}, "no weights of HalvingTrainer's network have head in their names"),
        (("-c", "3d_lowress"), {}, "unknown configuration '3d_lowress'"),
        (("--heads", "4"), {}, "--heads is for the authors' weights"),
    ],
)
def test_what_does_not_fit_is_named(published, options, changes, message, capsys):
    code, _, file = published("HalvingTrainer", *options, **changes)
    assert code == 2
    assert message in capsys.readouterr().err
    assert not file.exists()


def test_options_of_trainers_are_refused_for_the_authors_weights(tmp_path, capsys):
    arguments = ["import-weights", "sasan", "in.pth", "out.pth", "--plans", str(tmp_path / "plans.json")]
    assert main(arguments) == 2
    assert "--plans and --initial are for the name of a trainer" in capsys.readouterr().err
