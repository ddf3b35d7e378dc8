import copy
import io
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.plain.faf_net import plain_encoder, plain_episode, plain_forward
from nnunet_ext.cli.main import main
from nnunet_ext.networks import FAFNet
from nnunet_ext.networks.faf_net.authors_weights import faf_net_from_authors
from nnunet_ext.networks.faf_net.head import FAFHead, Support
from nnunet_ext.networks.faf_net.prototypes import masked_average_reference
from nnunet_ext.weights import from_authors

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
SMALL = {
    "input_channels": 1,
    "num_classes": 3,
    "patch_size": (32, 24),
    "n_stages": 4,
    "features_per_stage": (4, 6, 8, 10),
    "conv_op": nn.Conv2d,
    "kernel_sizes": 3,
    "strides": 2,
    "encoder": "plan",
    "feature_channels": 12,
}
CASES = {
    "2d": {},
    "3d": {"conv_op": nn.Conv3d, "patch_size": (8, 32, 24)},
    "anisotropic": {
        "conv_op": nn.Conv3d,
        "patch_size": (5, 24, 32),
        "strides": [(1, 1, 1), (1, 2, 2), (1, 2, 1), (1, 2, 2)],
        "kernel_sizes": [(1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)],
    },
    "resnet18": {"encoder": "resnet18"},
}
every_case = pytest.mark.parametrize("case", list(CASES))


def build(case="2d", support=True, **arguments):
    network = FAFNet(**(SMALL | CASES[case] | arguments))
    if support:
        classes = network.num_classes - (not arguments.get("regions", False))
        network.set_support(*support_set(classes, network.input_channels))
    return network


def support_set(classes=2, channels=1, size=(32, 24), shots=3):
    """Slices and disjoint squares; the first class is in every slice, the last in the last slice alone."""
    masks = torch.zeros(shots, classes, *size)
    for c in range(classes):
        first = 0 if c == 0 else min(c, shots - 1)
        masks[first:, c, 4 + 9 * c : 10 + 9 * c, 5:15] = 1
    return torch.randn(shots, channels, *size) + masks.sum(1, keepdim=True), masks


def image(case, batch=1, channels=1):
    return torch.randn(batch, channels, *(SMALL | CASES[case])["patch_size"])


def after_encoder(file, **settings):
    return from_authors("faf_net", file.state_dict, **settings).double()


def test_agrees_with_the_authors_in_probabilities_and_losses(golden, assert_close):
    file = golden("faf_net")
    head = after_encoder(file)
    features, tau = file["features"].double(), file["threshold"].double()
    mask, expected = file["support_mask"].double(), file["probabilities"].double()
    assert_close(head.segment_features(features[:1], mask, features[1:], tau[1:]), expected, 1e-6)
    f, t = features[:, None, None], tau[:, None, None]
    episode = head.episode(f[0], t[0], mask[None, None], f[1], t[1], file.meta["image"])
    assert_close(episode.probabilities[0, 0], expected[0, 1:], 1e-6)
    assert_close(episode.alignment_loss, file["align_loss"].double()[0], 1e-6)
    assert_close(episode.prototype_loss, file["proto_loss"].double()[0], 1e-6)
    assert episode.query_loss == 0


def test_losses_and_their_gradients_are_those_of_the_page(golden, assert_close):
    file = golden("faf_net")
    head = after_encoder(file)
    mask = file["support_mask"].double()
    query_mask = (torch.rand(1, 33, 33) > 0.7).double()
    results = []
    for direct in (True, False):
        features = file["features"].double().requires_grad_()
        tau = file["threshold"].double().requires_grad_()
        if direct:
            losses = plain_episode(head, features, tau, mask, query_mask)[:3]
        else:
            f, t = features[:, None, None], tau[:, None, None]
            episode = head.episode(f[0], t[0], mask[None, None], f[1], t[1], (33, 33), query_mask[None, None])
            losses = (episode.query_loss, episode.alignment_loss, episode.prototype_loss)
        leaves = [features, tau, *(p for n, p in head.named_parameters() if n != "icm.fc_k.bias")]
        gradients = torch.autograd.grad(losses[0] + 2 * losses[1] + 3 * losses[2], leaves)
        results.append([*losses, *gradients])
    for page, ours in zip(*results, strict=True):
        assert_close(ours, page, 1e-8)


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


@pytest.mark.parametrize("case", ["2d", "resnet18"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("threshold_from", ["query", "support"])
def test_every_parameter_learns_from_an_episode(case, channels, threshold_from):
    network = build(case, support=False, input_channels=channels, threshold_from=threshold_from, slices_per_chunk=2)
    images, masks = support_set(2, channels)
    with torch.no_grad():
        network.encoder.threshold[2].weight.abs_()  # so that something is predicted, from which the alignment starts
    episode = network(image(case, 3, channels)[None], images[None], masks[None], torch.rand(1, 3, 2, 32, 24) > 0.5)
    assert episode.logits.shape == episode.probabilities.shape == (1, 3, 2, 32, 24)
    losses = (episode.query_loss, episode.alignment_loss, episode.prototype_loss)
    assert all(loss.isfinite() and loss > 0 for loss in losses)
    sum(losses).backward()
    broken = [k for k, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert broken == []
    # Biases before a norm, and those of keys, have no effect.
    idle = [
        k for k, p in network.named_parameters() if (p.grad == 0).all() and not k.endswith(("conv.bias", "_k.bias"))
    ]
    assert idle == []


def test_the_support_is_encoded_with_gradients():
    network = build(support=False)
    images, masks = support_set()
    images.requires_grad_()
    network.forward_episode(images[None], masks[None], image("2d", 2)[None]).logits.sum().backward()
    assert (images.grad.flatten(1).abs().sum(1) > 0).all()


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


def test_all_classes_at_once_are_each_class_alone(assert_close):
    network = build(num_classes=4, support=False, patch_size=(40, 32)).double()
    images, masks = (t.double() for t in support_set(3, size=(40, 32)))
    x = torch.randn(2, 1, 40, 32).double()
    network.set_support(images, masks)
    together = network(x)
    for c in range(3):
        alone = torch.zeros_like(masks)
        alone[:, c] = masks[:, c]
        network.set_support(images, alone)
        single = network(x)
        assert_close(single[:, c + 1], together[:, c + 1], 1e-10)
        others = [i + 1 for i in range(3) if i != c]
        nothing = torch.logit(torch.tensor(1e-6, dtype=torch.float64))
        assert torch.allclose(single[:, others], nothing)
        two = torch.softmax(single[:, [0, c + 1]], 1)[:, 1]
        assert_close(two, network.segment(x, network.encode_support(images, masks[:, [c]]))[:, 0], 1e-10)


def test_an_episode_predicts_what_the_stored_support_does(assert_close):
    network = build(support=False).double().eval()
    images, masks = (t.double() for t in support_set())
    x = torch.randn(2, 1, 32, 24).double()
    network.set_support(images, masks)
    assert_close(network.forward_episode(images[None], masks[None], x[None]).logits[0], network(x)[:, 1:], 1e-10)


def test_episodes_do_not_see_each_other(assert_close):
    network = build(support=False).double().eval()
    images, masks = (t.double() for t in support_set())
    supports = torch.stack((images, torch.randn_like(images)))
    both = torch.stack((masks, masks.flip(-1)))
    queries = torch.randn(2, 4, 1, 32, 24).double()
    targets = (torch.rand(2, 4, 2, 32, 24) > 0.5).double()
    together = network.forward_episode(supports, both, queries, targets)
    apart = [network.forward_episode(supports[[e]], both[[e]], queries[[e]], targets[[e]]) for e in range(2)]
    assert_close(together.logits, torch.cat([a.logits for a in apart]), 1e-10)
    for loss in ("alignment_loss", "prototype_loss"):
        assert_close(getattr(together, loss), torch.stack([getattr(a, loss) for a in apart]).mean(), 1e-10)


def test_where_nothing_is_predicted_only_the_query_counts():
    network = build(support=False, threshold_from="query")
    with torch.no_grad():
        network.encoder.threshold[0].weight.abs_().mul_(1e4)
        network.encoder.threshold[2].weight.abs_().neg_()
    images, masks = support_set()
    episode = network.forward_episode(images[None], masks[None], image("2d", 2)[None], torch.ones(1, 2, 2, 32, 24))
    assert (episode.probabilities <= 0.5).all()
    assert episode.alignment_loss == episode.prototype_loss == 0
    assert episode.query_loss > 0
    sum(episode[2:]).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_classes_without_support_count_in_no_loss(assert_close):
    network = build(support=False).double().eval()
    images, masks = (t.double() for t in support_set())
    queries, targets = torch.randn(1, 2, 1, 32, 24).double(), torch.ones(1, 2, 2, 32, 24).double()
    masks[:, 1] = 0
    both = network.forward_episode(images[None], masks[None], queries, targets)
    one = network.forward_episode(images[None], masks[None, :, :1], queries, targets[:, :, :1])
    for loss in ("query_loss", "alignment_loss", "prototype_loss"):
        assert_close(getattr(both, loss), getattr(one, loss), 1e-10)
    none = network.forward_episode(images[None], 0 * masks[None], queries, targets)
    assert none[2:] == (0, 0, 0)


def test_prototypes_are_means_over_the_slices_that_show_the_class(assert_close):
    network = build(support=False, slices_per_chunk=2).double().eval()
    images, masks = (t.double() for t in support_set())
    network.set_support(images, masks)
    bank = network.decoder.seg_layers
    features, tau = network.encoder(images)
    direct = masked_average_reference(features, masks)  # (3, 2, C)
    assert_close(bank.prototypes[1], direct[:, 0].mean(0), 1e-10)
    assert_close(bank.prototypes[2], direct[1:, 1].mean(0), 1e-10)
    assert_close(bank.thresholds[2], tau[1:].mean(), 1e-10)
    assert bank.prototype_valid.tolist() == [False, True, True]
    assert (bank.prototypes[0] == 0).all()


def test_support_slices_may_have_another_size_than_the_patch():
    network = build(support=False)
    network.set_support(*support_set(size=(41, 50)))
    assert network(image("2d")).isfinite().all()


def test_setting_the_support_writes_in_place_and_leaves_the_mode():
    network = build("resnet18", support=False).train()
    pointers = {k: v.data_ptr() for k, v in network.named_buffers()}
    statistics = network.encoder.backbone.bn1.running_mean.clone()
    network.set_support(*support_set())
    assert {k: v.data_ptr() for k, v in network.named_buffers()} == pointers
    assert torch.equal(network.encoder.backbone.bn1.running_mean, statistics)
    assert network.training
    assert network.encoder.backbone.bn1.training
    assert not any(b.requires_grad for b in network.buffers())


def test_the_support_travels_with_the_weights_and_a_second_replaces_it(assert_close):
    network = build().eval()
    x = image("2d")
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    file.seek(0)
    other = build(support=False).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_close(other(x), network(x), 1e-6)
    assert_close(copy.deepcopy(network)(x), network(x), 1e-6)
    images, masks = support_set()
    masks[:, 1] = 0
    network.set_support(images, masks)
    assert network.decoder.seg_layers.prototype_valid.tolist() == [False, True, False]
    assert (network.decoder.seg_layers.prototypes[2] == 0).all()


def test_what_depends_on_the_classes_stands_where_pretrained_weights_are_not_taken_from():
    shapes = [{k: v.shape for k, v in build(num_classes=n, support=False).state_dict().items()} for n in (2, 5)]
    different = {k for k in shapes[0] if shapes[0][k] != shapes[1][k]}
    assert different == {f"decoder.seg_layers.{kind}" for kind in ("prototypes", "thresholds", "prototype_valid")}


def test_regions_have_no_background(assert_close):
    network = build(regions=True, num_classes=2, support=False).double()
    images, masks = (t.double() for t in support_set())
    network.set_support(images, masks)
    x = torch.randn(2, 1, 32, 24).double()
    logits = network(x)
    assert_close(torch.sigmoid(logits), network.segment(x, network.encode_support(images, masks)), 1e-10)
    # A network built for prediction does not know about regions; its weights do.
    predictor = build(num_classes=2, support=False).double()
    predictor.load_state_dict(network.state_dict())
    assert_close(predictor(x), logits, 1e-10)
    trained = build(num_classes=2, support=False).double()
    trained.load_state_dict(network.state_dict() | {"decoder.seg_layers.has_background": torch.tensor(True)})
    trained.set_support(images, masks, regions=True)
    assert_close(trained(x), logits, 1e-10)


def test_thresholds_come_from_the_query_or_the_support(assert_close):
    query, support = (build(threshold_from=t, support=False).double() for t in ("query", "support"))
    support.load_state_dict(query.state_dict())
    images, masks = (t.double() for t in support_set())
    x = torch.randn(1, 1, 32, 24).double()
    for network in (query, support):
        network.set_support(images, masks)
    features, tau = support.encoder(x)
    stored = support.decoder.seg_layers.support()
    for network, threshold in ((query, tau), (support, stored.thresholds[1:, None, None])):
        p = network.decoder.icm(stored.prototypes[None, 1:], features) + stored.prototypes[1:]
        s = 20 * nn.functional.cosine_similarity(features[:, None], p[..., None, None], dim=2)
        expected = nn.functional.interpolate(
            torch.sigmoid(0.5 * (s + threshold)), (32, 24), mode="bilinear", align_corners=True
        )
        assert_close(torch.sigmoid(network(x))[:, 1:], expected, 1e-8)


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


def test_before_a_support_is_set_there_is_nothing_to_predict():
    network = build(support=False)
    with pytest.raises(RuntimeError, match=r"no support yet: call set_support"):
        network(image("2d"))
    with FakeTensorMode():  # what costs are counted on
        assert build(support=False)(torch.empty(1, 1, 32, 24)).shape == (1, 3, 32, 24)


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


def test_training_on_episodes_lowers_the_loss():
    network = build(support=False)
    optimiser = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9)
    images, masks = support_set(shots=6)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        noisy = images + 0.1 * torch.randn_like(images)
        episode = network.forward_episode(noisy[None, :3], masks[None, :3], noisy[None, 3:], masks[None, 3:])
        loss = sum(episode[2:])
        loss.backward()
        optimiser.step()
        losses.append(episode.query_loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_torchvision_is_not_imported_with_the_networks():
    code = "import sys, nnunet_ext.networks; sys.exit('torchvision' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_pretrained_weights_are_asked_of_the_encoder(monkeypatch):
    import torchvision

    given = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda *_, **__: given)
    network = build("resnet18", support=False, weights="imagenet")
    assert torch.equal(network.encoder.backbone.conv1.weight, given["conv1.weight"])
    assert not network.train().encoder.backbone.bn1.training


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


def as_authors(network):
    """A whole checkpoint with names like the authors', including the parts on which no output depends."""
    state = {}
    for key, value in network.encoder.backbone.state_dict().items():
        state[f"encoder.backbone.{key}"] = value
    state |= {
        "encoder.reduce1.weight": network.encoder.reduce.weight,
        "encoder.reduce2.weight": torch.zeros(8, 2048, 1, 1),
        "encoder.reduce1d.weight": torch.zeros(1, 1000),
        "encoder.reduce1d.bias": torch.zeros(1),
        "thre.0.weight": network.encoder.threshold[0].weight,
        "thre.2.weight": network.encoder.threshold[2].weight,
        "encoder.backbone.layer4.0.conv1.weight": torch.zeros(2, 2, 1, 1),
        "encoder.backbone.fc.weight": torch.zeros(1000, 2048),
    }
    icm = network.decoder.icm.state_dict()
    for key, value in icm.items():
        key = key.replace("aff.amplitude.down", "down1").replace("aff.phase.down", "down2")
        for ours, theirs in (("amplitude", "amp"), ("phase", "pha")):
            for i, place in ((1, 0), (2, 1), (3, 1)):
                key = key.replace(f"aff.{ours}.res{i}", f"{theirs}_res{i}.{place}")
        state[f"cross_att.{key}"] = value
    return {k: v.detach() for k, v in state.items()}


@pytest.fixture
def whole():
    arguments = SMALL | {"patch_size": (33, 33), "strides": 1, "encoder": "resnet50", "feature_channels": 8}
    return FAFNet(**arguments | {"num_classes": 2})


def test_a_whole_checkpoint_is_imported_without_its_dead_parts(whole, assert_close):
    imported = from_authors("faf_net", as_authors(whole))
    assert imported.patch_size == (33, 33)
    assert imported.encoder.backbone.name == "resnet50"
    assert not imported.training
    images, masks = support_set(1, size=(33, 33))
    for network in (whole, imported):
        network.eval().set_support(images, masks)
    assert_close(imported(images), whole(images), 1e-6)
    other = from_authors("faf_net", as_authors(whole), patch_size=(65, 40), input_channels=3, num_classes=4)
    assert other.decoder.icm.aff.phase.grid == (9, 9)
    assert other.decoder.seg_layers.prototypes.shape == (4, 8)


def test_import_weights_takes_the_settings(whole, tmp_path):
    torch.save(as_authors(whole), tmp_path / "authors.pth")
    command = ["import-weights", "faf_net", str(tmp_path / "authors.pth"), str(tmp_path / "ours.pth")]
    settings = {"--input-channels": [3], "--num-classes": [4], "--patch-size": [65, 40], "--filter-grid": [9, 9]}
    assert main([*command, *(str(word) for option, values in settings.items() for word in (option, *values))]) == 0
    written = torch.load(tmp_path / "ours.pth", weights_only=True)["network_weights"]
    assert written["decoder.seg_layers.prototypes"].shape == (4, 8)


def test_missing_extra_and_misshapen_keys_are_listed(golden, whole):
    state = dict(golden("faf_net").state_dict)
    state["stray.weight"] = state.pop("cross_att.fc_q.bias")
    with pytest.raises(ValueError, match=r"1 missing: cross_att\.fc_q\.bias; 1 extra: stray\.weight"):
        from_authors("faf_net", state)
    with pytest.raises(ValueError, match=r"missing: cross_att\.amp_res1\.0\.weight"):
        from_authors("faf_net", {})
    state = golden("faf_net").state_dict | {"cross_att.fc_o.bias": torch.zeros(7)}
    with pytest.raises(ValueError, match=r"wrong shape: icm\.fc_o\.bias \(7,\) instead of \(16,\)"):
        from_authors("faf_net", state)
    state = as_authors(whole)
    state["encoder.backbone.layer1.9.stray"] = state.pop("encoder.backbone.bn1.bias")
    with pytest.raises(ValueError, match=r"1 missing: bn1\.bias; 1 extra: layer1\.9\.stray"):
        from_authors("faf_net", state)
    state = as_authors(whole)
    del state["thre.2.weight"]
    with pytest.raises(
        ValueError, match=r"one of shape \(1, 8, 1, 1\), but there are: encoder\.reduce1\.weight \(8, 1024, 1, 1\)"
    ):
        from_authors("faf_net", state)


def test_filters_of_no_square_grid_need_their_grid():
    head = FAFHead(2, 8, 2, (4, 6))
    names = as_authors_head(head)
    with pytest.raises(ValueError, match=r"filters of 24 positions have no square grid: `filter_grid` must be given"):
        faf_net_from_authors(names)
    assert faf_net_from_authors(names, filter_grid=(4, 6)).icm.aff.phase.grid == (4, 6)
    with pytest.raises(ValueError, match=r"faf_net has no setting heads; its settings: patch_size, "):
        from_authors("faf_net", names, heads=2)


def as_authors_head(head):
    network = nn.Module()
    network.decoder, network.encoder = head, nn.Module()
    network.encoder.backbone, network.encoder.reduce = nn.Module(), nn.Conv2d(1, 1, 1)
    network.encoder.threshold = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    return {k: v for k, v in as_authors(network).items() if k.startswith("cross_att.")}


def test_a_support_can_be_of_classes_that_the_network_does_not_have():
    network = build(num_classes=2, support=False).eval()
    images, masks = support_set(3, size=(40, 32))
    support = network.encode_support(images, masks)
    assert isinstance(support, Support)
    probabilities = network.segment(torch.randn(5, 1, 32, 24), support)
    assert probabilities.shape == (5, 3, 32, 24)
    assert not network.decoder.seg_layers.prototype_valid.any()


def test_every_slice_can_have_a_support_of_its_own(assert_close):
    network = build(num_classes=2, support=False).eval().double()
    network.slices_per_chunk = 2
    images, masks = (t.double() for t in support_set(3, size=(40, 32)))
    masks[0] = 0  # shows nothing
    supports = [network.encode_support(images[[i]], masks[[i]]) for i in range(3)]
    x = torch.randn(3, 1, 32, 24).double()
    together = network.segment(x, Support(*(torch.stack(t) for t in zip(*supports, strict=True))))
    alone = torch.cat([network.segment(x[[i]], supports[i]) for i in range(3)])
    assert_close(together, alone, 1e-10)
    assert (together[0] < 1e-5).all()


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


def test_running_statistics_take_each_chunk_once(assert_close):
    """Chunks are recomputed in the backward pass."""
    network = build("resnet18", support=False, slices_per_chunk=2).train()
    images, masks = support_set(shots=6)
    norm = network.encoder.backbone.bn1
    seen = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    episode = network.forward_episode(images[None, :3], masks[None, :3], images[None, 3:], masks[None, 3:])
    episode.query_loss.backward()
    assert len(seen) == 6  # three chunks, each recomputed once
    expected = torch.zeros_like(norm.running_mean)
    for chunk in seen[:3]:
        expected = 0.9 * expected + 0.1 * chunk.mean((0, 2, 3))
    assert_close(norm.running_mean, expected, 1e-5)
    assert norm.num_batches_tracked == 3
    assert norm.momentum == 0.1
