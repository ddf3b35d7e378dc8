"""Training of EM-Net: variants, optimisers and schedules."""

from itertools import pairwise

import pytest
import torch

from nnunet_ext.networks import EMNet
from nnunet_ext.networks.em_net.efl import EFL

EM_NET_VARIANTS = {
    "EMNetTrainer": ("EM-Net", "spatial"),
    "EMNetAuthorsTrainer": ("EM-Net", "authors"),
    "EMNetSGDTrainer": ("EM-Net", "spatial"),
    "EMNetATrainer": ("A", "spatial"),
    "EMNetBTrainer": ("B", "spatial"),
    "EMNetCTrainer": ("C", "spatial"),
    "EMNetNoMambaTrainer": ("no_mamba", "spatial"),
}


@pytest.mark.parametrize("name", list(EM_NET_VARIANTS))
def test_em_net_trainers_build_their_variant(make_trainer, name):
    network = make_trainer(name).network
    variant, layout = EM_NET_VARIANTS[name]
    planned = EMNet.adapt_topology(
        patch_size=(16, 24, 16), n_stages=4, features_per_stage=8, conv_op=torch.nn.Conv3d, kernel_sizes=3, strides=2
    )
    expected = EMNet(1, 3, **planned, variant=variant, efl_layout=layout, deep_supervision=True)
    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in expected.state_dict().items()
    }
    layouts = {m.spatial for m in network.modules() if isinstance(m, EFL)}
    assert layouts == (set() if variant == "A" else {layout == "spatial"})
    assert any("mamba" in k for k in network.state_dict()) == (variant != "no_mamba")


def test_em_net_is_optimised_by_adamw_with_the_authors_schedule(make_trainer, monkeypatch):
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", "400")
    trainer = make_trainer("EMNetTrainer")
    group, without_decay = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.AdamW
    assert (group["weight_decay"], without_decay["weight_decay"]) == (1e-2, 0)
    rates = []
    for epoch in range(400):
        trainer.lr_scheduler.step(epoch)
        rates.append(group["lr"])
        assert without_decay["lr"] == group["lr"]
    # 10 of 1000 epochs of warm-up, here 4 of 400, then half a cosine.
    assert rates[:5] == pytest.approx([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])
    assert rates[202] == pytest.approx(5e-4)
    assert rates[399] < 1e-7
    assert all(a >= b for a, b in pairwise(rates[4:]))
    trainer.lr_scheduler.step(202)  # as a resumed training starts
    assert group["lr"] == pytest.approx(5e-4)


def test_em_net_decays_the_weights_of_linear_maps_only(make_trainer):
    """Without a gradient nothing else changes."""
    trainer = make_trainer("EMNetTrainer")
    before = {k: p.detach().clone() for k, p in trainer.network.named_parameters()}
    for p in trainer.network.parameters():
        p.grad = torch.zeros_like(p)
    trainer.lr_scheduler.step(100)
    trainer.optimizer.step()
    shrunk = {k for k, p in trainer.network.named_parameters() if not torch.equal(p, before[k])}
    kept = before.keys() - shrunk
    zeros = {k for k in before if not before[k].any()}
    norms = {id(p) for m in trainer.network.modules() if "Norm" in type(m).__name__ for p in m.parameters(False)}
    plain = {
        k
        for k, p in trainer.network.named_parameters()
        if id(p) in norms or k.rpartition(".")[2] in ("bias", "A_log", "D", "gamma", "pos")
    }
    assert plain | zeros == kept
    assert {"A_log", "D", "gamma"} <= {k.rpartition(".")[2] for k in kept}
    assert all(p.grad is not None for p in trainer.network.parameters())


def test_em_net_resumes_from_an_optimiser_of_one_group(make_trainer):
    """A state of versions up to 0.1.0: every parameter gets its moments, rates are restored, decay is not."""
    trainer = make_trainer("EMNetTrainer")
    parameters = list(trainer.network.parameters())
    old = torch.optim.AdamW(parameters, 3e-4, weight_decay=1e-2)
    for number, p in enumerate(parameters):
        p.grad = torch.full_like(p, number + 1)
    old.step()
    state = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    trainer.optimizer.load_state_dict(old.state_dict())
    for number, p in enumerate(parameters):
        torch.testing.assert_close(trainer.optimizer.state[p]["exp_avg"], torch.full_like(p, 0.1 * (number + 1)))
    assert [g["weight_decay"] for g in trainer.optimizer.param_groups] == [1e-2, 0]
    assert [g["lr"] for g in trainer.optimizer.param_groups] == [3e-4, 3e-4]
    again = make_trainer("EMNetTrainer")
    again.network.load_state_dict(state)
    again.optimizer.load_state_dict(trainer.optimizer.state_dict())
    for mine, theirs in zip(again.network.parameters(), parameters, strict=True):
        torch.testing.assert_close(again.optimizer.state[mine], trainer.optimizer.state[theirs])


def test_em_net_is_optimised_as_by_its_authors(make_trainer):
    trainer = make_trainer("EMNetSGDTrainer")
    (group,) = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.SGD
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)
    trainer.lr_scheduler.step(10)
    assert group["lr"] == 0.01


@pytest.mark.parametrize(("epochs", "warm_up"), [(1, 1), (30, 1), (200, 2), (1000, 10), (4000, 10)])
def test_a_shorter_training_warms_up_for_less(make_trainer, monkeypatch, epochs, warm_up):
    monkeypatch.setenv("NNUNET_EXT_EPOCHS", str(epochs))
    assert make_trainer("EMNetTrainer", "2d_tiny").lr_scheduler.warm_up == warm_up


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ([2] * 2, [1, 2, 2]),
        ([2] * 3, [1, 4, 2]),
        ([2] * 5, [1, 4, 2, 2, 2]),
        ([2] * 6, [1, 4, 2, 2, 2]),
        ([(1, 2, 2)] * 2 + [2] * 3, [1, (1, 4, 4), 2, 2, 2]),
        ([(1, 2, 2), 2, (2, 2, 1)], [1, (2, 4, 4), (2, 2, 1)]),
    ],
)
def test_em_net_takes_the_poolings_of_any_plan(strides, expected):
    def per_axis(values):
        return [(v,) * 3 if isinstance(v, int) else v for v in values]

    planned = EMNet.adapt_topology(
        patch_size=(64, 128, 128),
        n_stages=len(strides) + 1,
        features_per_stage=32,
        conv_op=torch.nn.Conv3d,
        kernel_sizes=3,
        strides=[1, *strides],
    )
    assert planned["strides"] == per_axis(expected)
    assert planned["features_per_stage"] == (48, 48, 96, 192, 384)[: len(expected)]
    assert planned["n_stages"] == len(expected)


def test_em_net_needs_two_poolings():
    with pytest.raises(ValueError, match=r"needs at least 2 poolings, the plan has 1: `strides`="):
        EMNet.adapt_topology(
            patch_size=(32, 32), n_stages=2, features_per_stage=32, conv_op=torch.nn.Conv2d, kernel_sizes=3, strides=2
        )
