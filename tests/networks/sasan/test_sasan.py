import pytest
import torch
from torch import nn

from benchmarks.plain.sasan import plain_forward, plain_masks
from nnunet_ext.networks import NETWORKS, SASAN
from nnunet_ext.weights import from_authors

SMALL = {
    "input_channels": 1,
    "num_classes": 3,
    "patch_size": (8, 8, 8),
    "n_stages": 3,
    "features_per_stage": (4, 6, 8),
    "conv_op": nn.Conv3d,
    "kernel_sizes": 3,
    "strides": 2,
}


def test_agrees_with_the_authors_in_values_and_gradient(golden, assert_close):
    file = golden("sasan")
    network = from_authors("sasan", file.state_dict, heads=file.meta["heads"])
    x = file["x"].requires_grad_()
    y = network(x)
    assert_close(y, file["y"], 1e-5)
    (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum().backward()
    assert_close(x.grad, file["grad_x"], 1e-5)


def test_equals_its_plain_transcription_with_every_gradient(assert_close):
    network = SASAN(**(SMALL | {"patch_size": (12, 8, 16), "strides": [1, 2, (1, 2, 2)]})).double()
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 1, 12, 8, 16, dtype=torch.float64)
    results = [network(x), plain_forward(network, x, plain_masks(network))]
    assert_close(*results, 1e-10)
    weight = torch.randn_like(results[0])
    # A convolution's bias has no gradient before an instance norm: rounding, in either form.
    leaves = {k: p for k, p in network.named_parameters() if not k.endswith("conv.bias")}
    fast, plain = (torch.autograd.grad((out * weight).sum(), list(leaves.values())) for out in results)
    for a, b in zip(fast, plain, strict=True):
        assert_close(a, b, 1e-8)


def test_parameter_count_of_the_authors_setting():
    assert sum(p.numel() for p in SASAN(**NETWORKS["sasan"].paper).parameters()) == 60_669_936


def test_masks_are_tied_to_the_patch():
    network = SASAN(**SMALL)
    masks = {k: tuple(p.shape) for k, p in network.named_parameters() if k.endswith("mask")}
    assert sorted(masks.values()) == [(1, 4, 8, 8, 8), (1, 6, 4, 4, 4), (1, 8, 2, 2, 2)]


def test_asking_for_heads_that_were_not_built_is_an_error():
    network = SASAN(**SMALL)
    network.decoder.deep_supervision = True
    with pytest.raises(ValueError, match=r"built with `deep_supervision=False`"):
        network(torch.randn(1, 1, 8, 8, 8))


def test_a_single_voxel_at_the_bottom_is_an_error():
    with pytest.raises(ValueError, match=r"`patch_size`=\(4, 4, 4\) leaves one voxel"):
        SASAN(**(SMALL | {"patch_size": (4, 4, 4)}))


def test_a_wider_decoder_top_and_heads_are_arguments():
    network = SASAN(**(SMALL | {"decoder_features": 10, "heads": 2}))
    assert network.decoder.seg_layers[0].in_channels == 10
    assert {a.heads for a in network.decoder.asem.attentions} == {2}


def test_training_lowers_the_loss_from_the_first_steps():
    """SGD at nnU-Net's rate learns from the start: the purpose of ASEM's initialisation."""
    network = SASAN(**SMALL)
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.99, nesterov=True, weight_decay=3e-5)
    target = torch.zeros(2, 8, 8, 8, dtype=torch.long)
    target[:, 2:6, 2:6, 2:6] = 1
    target[:, 4:6, 2:6, 2:6] = 2
    x = target[:, None].float() + 0.1 * torch.randn(2, 1, 8, 8, 8)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(x), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_cuda_equals_cpu_and_low_precision_trains(dtype, monkeypatch, assert_close):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = SASAN(**SMALL)
    x = torch.randn(2, 1, 8, 8, 8)
    expected = network(x)
    network.cuda()
    assert_close(network(x.cuda()).cpu(), expected, 1e-3)
    with torch.autocast("cuda", dtype=dtype):
        out = network(x.cuda())
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
