import subprocess
import sys

import pytest
import torch
from torch import nn

from benchmarks.plain.faf_net import plain_encoder, plain_episode, plain_forward
from nnunet_ext.networks import FAFNet
from tests.helpers.faf_net import CASES, SMALL, after_encoder, build, image, support_set

PAPER = {
    "input_channels": 1,
    "num_classes": 2,
    "patch_size": (257, 257),
    "n_stages": 2,
    "features_per_stage": 1,
    "conv_op": nn.Conv2d,
    "kernel_sizes": 1,
    "strides": 1,
}


every_case = pytest.mark.parametrize("case", list(CASES))


def test_agrees_with_the_authors_in_probabilities_and_losses(golden, assert_close):
    file = golden("faf_net")
    head = after_encoder(file)
    features, tau = file["features"].double(), file["threshold"].double()
    mask, expected = file["support_mask"].double(), file["probabilities"].double()
    assert_close(head.segment_features(features[:1], mask, features[1:], tau[1:]), expected, 1e-6)
    f, t = features[:, None, None], tau[:, None, None]
    episode = head.episode(
        support_features=f[0],
        support_tau=t[0],
        support_masks=mask[None, None],
        query_features=f[1],
        query_tau=t[1],
        query_size=file.meta["image"],
    )
    assert_close(episode.probabilities[0, 0], expected[0, 1:], 1e-6)
    assert_close(episode.alignment_loss, file["align_loss"].double()[0], 1e-6)
    assert_close(episode.prototype_loss, file["proto_loss"].double()[0], 1e-6)
    assert episode.query_loss == 0


@pytest.mark.parametrize("case", ["2d", "resnet18"])
def test_agrees_with_a_plain_transcription(case, assert_close):
    """Whole networks: prediction from stored prototypes, and the losses of an episode with every gradient."""
    network = build(case, support=False).double().eval()
    images, masks = (t.double() for t in support_set(shots=2))
    own = torch.stack([masks[0, 0], masks[1, 1]])  # one slice per class
    of_slices = torch.zeros_like(masks)
    of_slices[0, 0], of_slices[1, 1] = own
    network.set_support(images, of_slices)
    queries = image(case, batch=3).double()
    with torch.no_grad():
        assert_close(network(queries), plain_forward(network, images, own, queries), 1e-8)

    pair, mask, query_mask = torch.cat((images[:1], queries[:1])), own[:1], own[1:]
    # Some biases cancel: those of keys in the softmax, those of convolutions in the instance norm.
    leaves = [p for n, p in network.named_parameters() if not n.endswith(("fc_k.bias", "conv.bias"))]
    features, tau = plain_encoder(network.encoder, pair)
    plain = plain_episode(network.decoder, features, tau, mask, query_mask)
    episode = network.forward_episode(pair[None, :1], mask[None, None], pair[None, 1:], query_mask[None, None])
    ours = (episode.query_loss, episode.alignment_loss, episode.prototype_loss, episode.probabilities[0])
    results = []
    for losses in (ours, plain):
        assert losses[1] > 0
        gradients = torch.autograd.grad(losses[0] + 2 * losses[1] + 3 * losses[2], leaves)
        results.append([*losses, *gradients])
    for a, b in zip(*results, strict=True):
        assert_close(a, b, 1e-6)


def test_parameters_at_the_authors_setting():
    with torch.device("meta"):
        network = FAFNet(**PAPER)
    assert sum(p.numel() for p in network.parameters()) == 56_161_988
    assert network.decoder.icm.aff.phase.grid == (65, 65)


@every_case
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_are_right_and_values_finite(case, channels, batch):
    network = build(case, input_channels=channels, slices_per_chunk=4)
    x = image(case, batch, channels)
    logits = network(x)
    assert logits.shape == (batch, 3, *x.shape[2:])
    assert logits.isfinite().all()
    assert (logits[:, 0] == 0).all()
    assert logits[:, 1:].std() > 0
    logits.square().sum().backward()


@every_case
def test_samples_do_not_see_each_other(case, assert_close):
    network = build(case).eval()
    x = image(case, 3)
    with torch.no_grad():
        assert_close(network(x), torch.cat([network(sample[None]) for sample in x]), 1e-4)


@pytest.mark.parametrize("case", ["3d", "anisotropic"])
def test_a_volume_is_its_slices(case, assert_close):
    network = build(case).eval()
    x = image(case, 2)
    arguments = {k: v if isinstance(v, int) else v[-2:] for k, v in CASES[case].items() if k == "patch_size"}
    flat = FAFNet(**(SMALL | arguments | {"strides": [(1, 1), (2, 2), (2, 1), (2, 2)] if case != "3d" else 2}))
    flat.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert_close(network(x), torch.stack([flat.eval()(s) for s in x.unbind(2)], 2), 1e-5)


@pytest.mark.parametrize("case", ["2d", "3d"])
def test_chunks_change_nothing(case, assert_close):
    network = build(case)
    x = image(case, 5)
    images, masks = support_set()
    results = []
    for chunk in (100, 3):
        network.slices_per_chunk = network.decoder.slices_per_chunk = chunk
        network.zero_grad()
        logits = network(x)
        episode = network.forward_episode(images[None], masks[None], torch.randn_like(images)[None] * 0 + images[None])
        (logits.square().mean() + episode.logits.square().mean() + episode.alignment_loss).backward()
        gradients = torch.cat([p.grad.flatten() for p in network.parameters()])
        results.append((logits, episode.probabilities, gradients))
    for whole, chunked in zip(*results, strict=True):
        assert_close(chunked, whole, 1e-4)


def test_what_depends_on_the_classes_stands_where_pretrained_weights_are_not_taken_from():
    shapes = [{k: v.shape for k, v in build(num_classes=n, support=False).state_dict().items()} for n in (2, 5)]
    different = {k for k in shapes[0] if shapes[0][k] != shapes[1][k]}
    assert different == {f"decoder.seg_layers.{kind}" for kind in ("prototypes", "thresholds", "prototype_valid")}


@pytest.mark.parametrize("grid", [None, (4, 5), 3, (9, 12)])
@pytest.mark.parametrize("size", [(32, 24), (40, 56), (33, 27)])
def test_any_filter_grid_and_image_size(grid, size):
    network = build(filter_grid=grid)
    assert network.decoder.icm.aff.amplitude.grid == {None: (8, 6), 3: (3, 3)}.get(grid, grid)
    assert network(torch.randn(1, 1, *size)).shape == (1, 3, *size)


def test_the_default_grid_has_a_bound():
    with torch.device("meta"):
        network = FAFNet(**(SMALL | {"patch_size": (512, 64)}))
    assert network.decoder.icm.aff.amplitude.grid == (65, 16)


def test_deep_supervision_is_a_list_of_one(assert_close):
    network = build(deep_supervision=True).eval()
    x = image("2d")
    (logits,) = network(x)
    network.decoder.deep_supervision = False
    assert_close(network(x), logits, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("magnitude", [1, 100])
@pytest.mark.parametrize("case", ["2d", "3d", "resnet18"])
def test_low_precision_stays_finite(case, dtype, magnitude):
    network = build(case, support=False)
    images, masks = support_set()
    with torch.autocast("cpu", dtype=dtype):
        network.set_support(magnitude * images, masks)
        logits = network(magnitude * image(case, 2))
        queries = magnitude * torch.randn(1, 2, 1, 32, 24)
        episode = network.forward_episode(
            magnitude * images[None], masks[None], queries, (queries > 0).expand(1, 2, 2, 32, 24)
        )
    assert logits.isfinite().all()
    assert all(t.isfinite().all() for t in episode)
    (logits.square().mean() + sum(episode[2:])).backward()
    assert [k for k, p in network.named_parameters() if not p.grad.isfinite().all()] == []


def test_three_channels_are_taken_as_they_are_and_others_start_as_their_mean(assert_close):
    one, three, four = (build("resnet18", support=False, input_channels=n).eval() for n in (1, 3, 4))
    three.load_state_dict(one.state_dict())
    four.load_state_dict({"encoder.to_rgb.weight": four.encoder.to_rgb.weight} | one.state_dict())
    images, masks = support_set(channels=4)
    for network, x in (
        (one, images.mean(1, keepdim=True)),
        (three, images.mean(1, keepdim=True).expand(-1, 3, -1, -1)),
    ):
        network.set_support(x, masks)
        four.set_support(images, masks)
        assert_close(four(images), network(x), 1e-4)
    assert four.encoder.to_rgb.weight.requires_grad


def test_torchvision_is_not_imported_with_the_networks():
    code = "import sys, nnunet_ext.networks; sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "resnet34"}, r"unknown `encoder` 'resnet34'; known: resnet101, resnet50, resnet18, plan"),
        ({"weights": "imagenet"}, r"`weights`='imagenet' exist for resnet101, resnet50, resnet18"),
        ({"threshold_from": "both"}, r"unknown `threshold_from` 'both'; known: query, support"),
        ({"num_classes": 1}, r"`num_classes`=1 is background alone"),
        ({"num_classes": 0}, r"`num_classes`=0 must be at least 1"),
        ({"input_channels": 0}, r"`input_channels`=0 must be at least 1"),
        ({"feature_channels": 0}, r"`feature_channels`=0 must be at least 1"),
        ({"icm_heads": 0}, r"`icm_heads`=0 must be at least 1"),
        ({"slices_per_chunk": 0}, r"`slices_per_chunk`=0 must be at least 1"),
        ({"filter_grid": (3, 4, 5)}, r"`filter_grid`=\(3, 4, 5\) must be two positive sizes"),
        ({"filter_grid": 0}, r"`filter_grid`=\(0, 0\) must be two positive sizes"),
        ({"patch_size": (32, 4), "strides": [1, 2, (2, 1), (2, 2)]}, r"slices of \(32, 4\) voxels are too small"),
        ({"patch_size": (32, 20)}, r"`patch_size\[1\]`=20 must be divisible by 8; nearest: 16 and 24"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, message):
    if "strides" in arguments:
        arguments = arguments | {"strides": [(1, 1), (2, 2), (2, 2), (2, 1)]}
    with pytest.raises(ValueError, match=message):
        build(support=False, **arguments)


def test_inputs_that_do_not_fit_are_errors():
    network, volumes = build(), build("3d")
    with pytest.raises(ValueError, match=r"inputs of shape \(B, M, H, W\), got \(1, 1, 8, 32, 24\)"):
        network(image("3d"))
    with pytest.raises(ValueError, match=r"inputs of shape \(B, M, D, H, W\), got \(1, 1, 32, 24\)"):
        volumes(image("2d"))
    with pytest.raises(ValueError, match=r"slices must be \(N, 1, H, W\), got \(1, 2, 32, 24\)"):
        network(image("2d", 1, 2))
    with pytest.raises(
        ValueError, match=r"slices of \(32, 7\) voxels are too small for this encoder: at least \(8, 8\)"
    ):
        network(torch.randn(1, 1, 32, 7))
    with pytest.raises(ValueError, match=r"\(4, 32\) voxels are too small for this encoder: at least \(5, 5\)"):
        build("resnet18")(torch.randn(1, 1, 4, 32))


def test_supports_that_do_not_fit_are_errors():
    network = build()
    images, masks = support_set()
    with pytest.raises(
        ValueError, match=r"\(N, 2, H, W\), one channel for every class but background of the 3 outputs"
    ):
        network.set_support(images, torch.cat((masks, masks), 1))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\), one channel for every class of the 3 outputs, got"):
        network.set_support(images, masks, regions=True)
    with pytest.raises(
        ValueError, match=r"masks of shape \(3, 2, 32, 12\) do not match images of shape \(3, 1, 32, 24\)"
    ):
        network.set_support(images, masks[..., ::2])
    before = network.decoder.seg_layers.prototypes.clone()
    with pytest.raises(ValueError, match="no mask has foreground"):
        network.set_support(images, 0 * masks)
    assert torch.equal(network.decoder.seg_layers.prototypes, before)
    queries = torch.randn(1, 2, 1, 32, 24)
    with pytest.raises(ValueError, match=r"must be \(E, slices, M, H, W\), got \(3, 1, 32, 24\)"):
        network.forward_episode(images, masks[None], queries)
    with pytest.raises(ValueError, match=r"`query_images` have 2 episodes, but `support_images` have 1"):
        network.forward_episode(images[None], masks[None], queries.expand(2, -1, -1, -1, -1))
    with pytest.raises(ValueError, match=r"`query_masks` have 1 classes, but `support_masks` 2"):
        network.forward_episode(images[None], masks[None], queries, queries)
    with pytest.raises(ValueError, match=r"`support_images` need `support_masks`"):
        network(queries, images[None])


@pytest.mark.gpu
@pytest.mark.parametrize("encoder", ["plan", "resnet18"])
@pytest.mark.parametrize("size", [(32, 24), (37, 44)])
def test_cuda_equals_cpu_and_low_precision_trains(encoder, size, monkeypatch, assert_close):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = build(support=False, encoder=encoder).eval()
    images, masks = support_set()
    network.set_support(images, masks)
    x = torch.randn(2, 1, *size)
    expected = network(x)
    network.cuda()
    assert_close(network(x.cuda()).cpu(), expected, 1e-3)
    network.train()
    with torch.autocast("cuda", dtype=torch.float16):
        episode = network(x.cuda()[None], images.cuda()[None], masks.cuda()[None], torch.ones(1, 2, 2, *size).cuda())
    sum(episode[2:]).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
