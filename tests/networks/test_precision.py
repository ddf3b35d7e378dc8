"""Networks under float16 and bfloat16, as nnU-Net trains on CUDA; here under the CPU's autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nnunet_ext.networks import NETWORKS
from tests.helpers.small_networks import EVERY, FURTHER, build, images_for, with_support

low_precision = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.mark.parametrize("name", sorted(NETWORKS))
@low_precision
@pytest.mark.parametrize("magnitude", [1, 100])
def test_low_precision_stays_finite_at_five_levels(name, dtype, magnitude):
    """The authors' five levels, whose unscaled spectrum overflows float16; forward and backward.

    The lowest level is 3 voxels wide: at 2, below the kernel's width, oneDNN's bfloat16 gradient of a 3 x 3 x 3
    convolution's weight is wrong (seen with torch 2.15 on a CPU with AVX512-BF16, with the convolution alone).
    """
    network = with_support(
        NETWORKS[name].network(
            input_channels=1,
            num_classes=3,
            patch_size=(48, 48, 48),
            n_stages=5,
            features_per_stage=(4, 8, 8, 16, 16),
            conv_op=nn.Conv3d,
            kernel_sizes=3,
            strides=2,
            deep_supervision=True,
            **FURTHER.get(name, {}),
        )
    )
    with torch.autocast("cpu", dtype=dtype):
        outputs = network(magnitude * torch.randn(1, 1, 48, 48, 48))
    assert all(o.isfinite().all() for o in outputs)
    torch.stack([o.float().square().mean() for o in outputs]).sum().backward()
    broken = [k for k, p in network.named_parameters() if not p.grad.isfinite().all()]
    assert broken == []


def magnify(network, scale=100):
    """Makes norms return maps of this magnitude; the returned list records the largest value of each."""
    for key, p in network.named_parameters():
        if p.ndim == 1 and key.endswith("weight"):
            nn.init.constant_(p, scale)
    largest = []

    def look(_, inputs):
        largest.append(inputs[0].detach().abs().max().item())

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            module.register_forward_pre_hook(look)
    return largest


def not_finite(network):
    return [k for k, p in network.named_parameters() if p.requires_grad and not p.grad.isfinite().all()]


@pytest.mark.parametrize("name", EVERY)
@low_precision
def test_features_of_magnitude_100_stay_finite(name, dtype):
    network = build(name, "2d", deep_supervision=True)
    largest = magnify(network)
    with torch.autocast("cpu", dtype=dtype):
        outputs = network(100 * images_for(network, 2))
    assert sorted(largest)[len(largest) // 2] >= 100
    assert all(o.isfinite().all() for o in outputs)
    # Gradients of a training loss. They grow with the logits, up to the end of float16's range: a GradScaler finds a
    # scale below 1 for them.
    (sum(F.cross_entropy(o.float(), o.argmin(1)) for o in outputs) / 64).backward()
    assert not_finite(network) == []


@low_precision
def test_an_episode_at_features_of_magnitude_100_stays_finite(dtype):
    """Includes FAF-Net's losses, whose logarithms see probabilities at the limits."""
    network = build("faf_net", "2d")
    largest = magnify(network)
    images = 100 * torch.randn(2, 3, 1, *network.patch_size)
    masks = (images[:, :, :1] > 0).float().expand(-1, -1, 2, -1, -1)
    with torch.autocast("cpu", dtype=dtype):
        episode = network(images, -images, masks, masks)
        loss = episode.query_loss + episode.alignment_loss + episode.prototype_loss
    assert sorted(largest)[len(largest) // 2] >= 100
    assert all(t.isfinite().all() for t in episode)
    assert loss > 0
    loss.backward()
    assert not_finite(network) == []
