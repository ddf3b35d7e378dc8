"""FAF-Net's supports and episodes."""

import copy
import io

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.plain.faf_net import plain_episode
from nnunet_ext.networks.faf_net.head import Support
from nnunet_ext.networks.faf_net.prototypes import masked_average_reference
from tests.helpers.faf_net import after_encoder, build, image, support_set


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
            episode = head.episode(
                support_features=f[0],
                support_tau=t[0],
                support_masks=mask[None, None],
                query_features=f[1],
                query_tau=t[1],
                query_size=(33, 33),
                query_masks=query_mask[None, None],
            )
            losses = (episode.query_loss, episode.alignment_loss, episode.prototype_loss)
        leaves = [features, tau, *(p for n, p in head.named_parameters() if n != "icm.fc_k.bias")]
        gradients = torch.autograd.grad(losses[0] + 2 * losses[1] + 3 * losses[2], leaves)
        results.append([*losses, *gradients])
    for page, ours in zip(*results, strict=True):
        assert_close(ours, page, 1e-8)


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
    assert none[1:] == (0, 0, 0)


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


def test_before_a_support_is_set_there_is_nothing_to_predict():
    network = build(support=False)
    with pytest.raises(RuntimeError, match=r"no support yet: call set_support"):
        network(image("2d"))
    with FakeTensorMode():  # what costs are counted on
        assert build(support=False)(torch.empty(1, 1, 32, 24)).shape == (1, 3, 32, 24)


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
