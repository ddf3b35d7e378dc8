"""Networks of libraries, at small sizes where their classes have any: built from plans, run, traced, trained."""

import pickle
import re
import sys
from importlib.machinery import PathFinder

import pytest
import torch

from nnunet_ext import training
from nnunet_ext.bench.setting import Setting
from nnunet_ext.networks.own import locate_network
from nnunet_ext.nnunet.trained_model import default_plans
from nnunet_ext.nnunet.trainers import find_trainer
from nnunet_ext.plans import OwnNetworkPlanner, planner_for
from nnunet_ext.profiling.counts import multiply_adds
from nnunet_ext.profiling.memory import trace_step
from nnunet_ext.profiling.trainer_step import construct_trainer, trainer_step
from nnunet_ext.utils.torch_private import FakeTensorMode
from tests.helpers.baselines import (
    CLASSES,
    DATASET,
    ON_A_LIBRARYS_BACKBONE,
    SMALL,
    build,
    outputs_of,
    patch_of,
    plans_for,
)
from tests.helpers.paths import ROOT

SEVERAL_OUTPUTS = {"MONAIUNetPlusPlusTrainer": 4} | dict.fromkeys((n for n in SMALL if n.startswith("MedNeXt")), 5)
LONG = ("MedNeXtMTrainer", "MedNeXtLTrainer")
SLOW = ("MedNeXtBTrainer", *LONG)
"""Variants of a network that is tested quickly in another."""
SLOW_IN_BFLOAT16 = (*SLOW, "MONAIVNetTrainer", "MONAIHighResNetTrainer")
"""The last two have fixed widths, and a CPU may emulate convolutions in bfloat16."""


def marked(name, *others, slow=True):
    marks = [pytest.mark.slow, *([pytest.mark.long] if name in LONG else ())] if slow else ()
    return pytest.param(name, *others, marks=marks)


every = pytest.mark.parametrize("name", [marked(name, slow=name in SLOW) for name in SMALL])


@pytest.fixture
def small(monkeypatch):
    """A trainer's class whose network has the arguments of `SMALL`."""

    def make(name):
        trainer = find_trainer(name)
        settings = {**trainer.network_settings, **SMALL[name]}
        monkeypatch.setattr(trainer, "network_settings", settings)
        return trainer

    return make


def check_outputs_and_gradients(trainer, name, case):
    patch = patch_of(name, case)
    network = build(trainer, patch, channels=2)
    x = torch.randn(2, 2, *patch)
    outputs = outputs_of(network, x)
    assert len(outputs) == SEVERAL_OUTPUTS.get(name, 1)
    assert outputs[0].shape == (2, CLASSES, *patch)
    voxels = [y[0, 0].numel() for y in outputs]
    assert voxels == sorted(voxels, reverse=True)
    torch.stack([y.float().square().mean() for y in outputs]).sum().backward()
    trained = {k: p.grad for k, p in network.named_parameters() if p.requires_grad}
    assert [k for k, gradient in trained.items() if gradient is None or not gradient.isfinite().all()] == []
    frozen = {k for k, p in network.named_parameters() if not p.requires_grad}
    assert all("norm_cross_attn" in k for k in frozen)
    assert bool(frozen) == (name == "UNETRTrainer")


@every
def test_outputs_and_gradients_in_2d(small, name):
    check_outputs_and_gradients(small(name), name, "2D")


@pytest.mark.slow
@pytest.mark.parametrize("case", ["3D", "anisotropic"])
@every
def test_outputs_and_gradients_in_3d(small, name, case):
    check_outputs_and_gradients(small(name), name, case)


@pytest.mark.parametrize("name", [marked(name, slow=name in SLOW_IN_BFLOAT16) for name in SMALL])
def test_finite_in_bfloat16_at_a_magnitude_of_100(small, name):
    patch = patch_of(name, "2D")
    network = build(small(name), patch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = outputs_of(network, 100 * torch.randn(2, 1, *patch))
    assert all(y.isfinite().all() for y in outputs)


def python_of(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)


TRACED_QUICKLY = ("MONAIUNetTrainer", "MONAISegResNetTrainer")


@pytest.mark.parametrize(
    ("name", "case"),
    [marked(name, case, slow=name not in TRACED_QUICKLY or case == "3D") for name in SMALL for case in ("2D", "3D")],
)
def test_a_training_step_is_traced_for_planning(name, case):
    """At the published size, on fake tensors; memory is at least that of weights, gradients and optimiser."""
    patch = patch_of(name, case)
    memory = trace_step(trainer_step(find_trainer(name), plans_for(patch), "traced", DATASET, 2))
    assert memory.saved > 0
    assert memory.gradients > 0.9 * memory.parameters
    assert memory.total > memory.parameters + memory.optimiser_state
    moments = 2 if issubclass(find_trainer(name), find_trainer("UNETRTrainer").__mro__[1]) else 1
    assert memory.optimiser_state == pytest.approx(moments * memory.gradients, rel=0.01)


@pytest.mark.parametrize("name", [name for name in SEVERAL_OUTPUTS if name not in SLOW])
def test_deep_supervision_is_switched_and_its_weights_predict(small, name):
    trainer, patch = small(name), patch_of(name, "2D")
    x = torch.randn(2, 1, *patch)
    supervised, predictor = build(trainer, patch).eval(), build(trainer, patch, deep_supervision=False).eval()
    predictor.load_state_dict(supervised.state_dict())
    pickle.loads(pickle.dumps(supervised))
    switch = construct_trainer(trainer, plans_for(patch), "traced", DATASET)
    switch.network = supervised
    with torch.no_grad():
        outputs = supervised(x)
        assert not supervised.training
        switch.set_deep_supervision_enabled(False)
        alone, predicted = supervised(x), predictor(x)
        switch.set_deep_supervision_enabled(True)
        assert len(supervised(x)) == len(outputs) == SEVERAL_OUTPUTS[name]
    assert torch.equal(alone, outputs[0])
    assert torch.equal(predicted, alone)
    assert [k for k, p in predictor.named_parameters() if not p.requires_grad]  # heads that only deep supervision has


@pytest.mark.slow
def test_lower_outputs_in_evaluation_have_a_compiled_form_too(small):
    """The class returns them in training mode only; nnU-Net validates with them."""
    network = build(small("MedNeXtTrainer"), (32, 32)).eval()
    compiled = torch.compile(network, backend="eager")
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        for _ in range(2):
            for a, b in zip(compiled(x), network(x), strict=True):
                assert torch.equal(a, b)


def test_outputs_of_unet_plus_plus_have_equal_weights(small):
    trainer = construct_trainer(small("MONAIUNetPlusPlusTrainer"), plans_for((32, 32)), "traced", DATASET)
    trainer.num_input_channels = 1
    assert trainer._get_deep_supervision_scales() == [[1.0, 1.0]] * 4
    assert trainer._build_loss().weight_factors == (0.25,) * 4


@every
def test_every_trainer_plans_by_what_its_network_takes(name):
    assert planner_for(find_trainer(name)) is OwnNetworkPlanner


@pytest.mark.parametrize(
    ("name", "patch", "message"),
    [
        ("MONAIUNetTrainer", (34, 32), r"`patch_size\[0\]`=34 .* a multiple of 4.*; nearest patch: 36 x 32"),
        ("MONAIUNetPlusPlusTrainer", (8, 64, 64), r"`patch_size\[0\]`=8 .* at least 16.*: 16 x 64 x 64"),
        ("MONAIUNetPlusPlusTrainer", (24, 16), r"`patch_size\[1\]`=16 .* more than one voxel .*: 24 x 32"),
        ("MONAIVNetTrainer", (8, 96, 96), r"`patch_size\[0\]`=8 .* a multiple of 16.*: 16 x 96 x 96"),
        ("MONAISegResNetTrainer", (20, 32), r"`patch_size\[0\]`=20 .* a multiple of 8.*: 24 x 32"),
        ("UNETRTrainer", (40, 56, 40), r"`patch_size\[0\]`=40 .* a multiple of 16.*: 48 x 64 x 48"),
        ("SwinUNETRTrainer", (32, 32), r"`patch_size\[1\]`=32 .* more than one voxel .*: 32 x 64"),
        ("MedNeXtTrainer", (24, 32), r"`patch_size\[0\]`=24 .* a multiple of 16.*: 32 x 32"),
    ],
)
def test_a_patch_that_the_network_does_not_take_is_an_error(name, patch, message):
    with pytest.raises(ValueError, match=f"{name}: {message}; plan with `nnunet_ext plan -tr {name}`"):
        build(find_trainer(name), patch)


def test_patches_that_need_no_multiple_are_taken(small):
    for name, patch in (("MONAIUNetPlusPlusTrainer", (20, 33)), ("MONAIHighResNetTrainer", (11, 13))):
        assert outputs_of(build(small(name), patch), torch.randn(2, 1, *patch))[0].shape == (2, CLASSES, *patch)


def test_v_net_refuses_channels_that_do_not_divide_its_width():
    with pytest.raises(ValueError, match=r"MONAIVNetTrainer: 3 input channels must divide 16.*use 1, 2, 4, 8 or 16"):
        build(find_trainer("MONAIVNetTrainer"), (32, 32), channels=3)


def test_an_unknown_variant_lists_the_known_ones(monkeypatch):
    trainer = find_trainer("MedNeXtTrainer")
    monkeypatch.setattr(trainer, "variant", "XL")
    with pytest.raises(ValueError, match=r"MedNeXtTrainer: unknown `variant` 'XL'; known: S, B, M, L"):
        build(trainer, (32, 32))


@pytest.mark.parametrize("name", ["S", "B", *(pytest.param(name, marks=pytest.mark.slow) for name in "ML")])
def test_variants_of_mednext_are_those_of_the_library(name):
    from monai.networks.nets.mednext import create_mednext

    expected = create_mednext(name, spatial_dims=2, in_channels=1, out_channels=CLASSES, deep_supervision=True)
    trainer = find_trainer("MedNeXtTrainer" if name == "S" else f"MedNeXt{name}Trainer")
    found = build(trainer, (32, 32))
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}


def test_the_plans_stages_are_those_of_the_u_net():
    network = build(find_trainer("MONAIResUNetTrainer"), (8, 32, 32), strides=[(1, 1, 1), (1, 2, 2), (2, 2, 2)])
    assert (network.channels, network.strides) == ((4, 6, 8), ((1, 2, 2), (2, 2, 2)))
    assert (network.kernel_size, network.num_res_units) == ((3, 3, 3), 2)
    flat = build(find_trainer("MONAIUNetTrainer"), (8, 32, 32), kernel=[(1, 3, 3)] * 3)
    assert flat.kernel_size == flat.up_kernel_size == (1, 3, 3)


ADAMW = {"UNETRTrainer": 1e-4, "SwinUNETRTrainer": 8e-4, "MedNeXtTrainer": 1e-3}


@pytest.mark.parametrize("name", ADAMW)
def test_optimisers_are_the_papers(small, monkeypatch, name):
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", "1000")
    trainer = construct_trainer(small(name), plans_for(patch_of(name, "2D")), "traced", DATASET)
    trainer.network = build(type(trainer), patch_of(name, "2D"))
    optimizer, scheduler = trainer.configure_optimizers()
    assert type(optimizer) is torch.optim.AdamW
    decayed, kept = optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (1e-2, 0)
    names = {id(p): k for k, p in trainer.network.named_parameters()}
    positions = {"position_embeddings", "relative_position_bias_table"}
    assert not {names[id(p)].rpartition(".")[2] for p in decayed["params"]} & positions
    rates = []
    for epoch in range(1000):
        scheduler.step(epoch)
        rates.append(kept["lr"])
    assert max(rates) == pytest.approx(ADAMW[name])
    assert rates.index(max(rates)) == (0 if name == "MedNeXtTrainer" else 9)
    assert rates[-1] < 0.003 * max(rates)


@pytest.fixture
def without_monai(monkeypatch):
    """As in an environment where it is not installed."""

    class Hiding(PathFinder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.partition(".")[0] == "monai" else super().find_spec(name, path, target)

    monkeypatch.setattr(sys, "meta_path", [Hiding if f is PathFinder else f for f in sys.meta_path])
    for name in [m for m in sys.modules if m.partition(".")[0] == "monai"]:
        monkeypatch.delitem(sys.modules, name)


def test_without_monai_trainers_are_found_and_the_error_names_the_extra(without_monai, monkeypatch):
    for name in (*SMALL, *ON_A_LIBRARYS_BACKBONE):
        monkeypatch.delitem(sys.modules, f"nnunet_ext.trainers.{name}", raising=False)
        assert find_trainer(name).__name__ == name
    with pytest.raises(ValueError, match=r'monai is not installed: pip install "nnunet_ext\[baselines\]"'):
        build(find_trainer("MONAIUNetTrainer"), (32, 32))
    with pytest.raises(ValueError, match=r"is unknown_package installed\?"):
        locate_network("unknown_package.Network")


def test_the_page_lists_every_trainer_and_its_class():
    rows = [line for line in (ROOT / "docs" / "baselines.md").read_text().splitlines() if line.startswith("| ")][1:]
    listed = {name: row for row in rows for name in re.findall(r"`(\w+Trainer)`", row)}
    assert set(listed) == set(SMALL)
    for name, row in listed.items():
        network_class = find_trainer(name).network_class
        assert f"`{network_class.rpartition('.')[2]}`" in row
        assert f"{network_class.rpartition('.')[0]}" == "monai.networks.nets"


def test_the_page_names_the_plans_that_are_made():
    command = (ROOT / "docs" / "baselines.md").read_text().split("-tr ")[1].split("```")[0]
    trainers, plans = (part.split() for part in command.replace("\\", "").split("-p "))
    assert len(trainers) == len(plans)
    for name, planned in zip(trainers, plans, strict=True):
        assert planned in ("nnUNetPlans", default_plans(name))


@pytest.mark.parametrize("page", ["baselines.md", "lstm_sa.md"])
def test_the_pages_trainers_build_their_networks(page):
    (text,) = python_of(page)
    found: dict = {}
    exec(compile(text, page, "exec"), found)
    (trainer,) = [v for k, v in found.items() if k.endswith("Trainer") and k not in vars(training)]
    for patch in ((32, 32), (4, 32, 32)) if page == "lstm_sa.md" else ((32, 32),):
        network = build(trainer, patch, deep_supervision=bool(trainer.has_lower_outputs))
        with torch.no_grad():
            assert network(torch.randn(1, 1, *patch)).shape == (1, CLASSES, *patch)


def test_bench_measures_them_and_says_which_patch_would_do(small):
    setting = Setting.of_patch((64, 64))
    small("SwinUNETRTrainer")
    with FakeTensorMode():
        network = setting.build("SwinUNETRTrainer", deep_supervision=False).eval()
        assert multiply_adds(network, 1, (64, 64)) > 0
    with pytest.raises(
        ValueError, match=r"SwinUNETRTrainer builds no network for \(40, 56\): .*nearest patch: 64 x 64"
    ):
        Setting.of_patch((40, 56)).build("SwinUNETRTrainer")
