"""Two real processes, as the ranks of a DDP training; on the CPU, where gloo stands in for nnU-Net's NCCL."""

import json

import pytest
import torch

from tests.helpers.small_networks import EVERY

START = """
import json
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from nnunet_ext.check.ranks import start_rank

rank, store = int(sys.argv[1]), sys.argv[2]
start_rank(rank, store)
"""

SM_LOSS = """
from nnunet_ext.losses import SelfUpdatingLoss
from nnunet_ext.networks import SASAN

torch.manual_seed(0)
network = DistributedDataParallel(
    SASAN(1, 2, (8, 8, 8), 3, (4, 4, 4), torch.nn.Conv3d, 3, 2, deep_supervision=True)
)
loss = SelfUpdatingLoss(dice_threshold=10, ce_threshold=10, boundary_threshold=10, deep_supervision_weights=[1, 1e-6])
optimiser = torch.optim.SGD(network.parameters(), 0.1)
torch.manual_seed(1 + rank)  # other data on every rank
target = torch.randint(0, 2, (1, 1, 8, 8, 8))
for step in range(3):
    optimiser.zero_grad()
    outputs = network(torch.randn(1, 1, 8, 8, 8))
    # Rank 0 sees a poor, rank 1 a good cross-entropy: alone they would raise different weights.
    outputs[0] = outputs[0] + (20.0 if rank else -6.0) * torch.cat([target == 0, target == 1], 1)
    loss(outputs, [target, target[..., ::2, ::2, ::2]]).backward()
    optimiser.step()
dist.barrier()
dist.destroy_process_group()
print(loss.last_terms.cross_entropy.item() > 1, loss.raw_weights.tolist())
print(sum(p.double().sum().item() for p in network.parameters()))
"""


def test_ranks_agree_on_the_weights_of_the_sm_loss(run_ranks):
    outputs = [printed.splitlines() for printed in run_ranks(START + SM_LOSS)]
    (poor, weights0), (good, weights1) = (line[0].split(" ", 1) for line in outputs)
    assert (poor, good) == ("True", "False")
    assert weights0 == weights1
    assert weights0 != "[1.0, 1.0, 1.0]"
    assert outputs[0][1] == outputs[1][1]


EVERY_NETWORK = """
from nnunet_ext.check.ranks import rank_report
from tests.helpers.small_networks import EVERY, build, images_for

def loss_of(name, network):
    x = images_for(network.module, 2)
    if name == "faf_net":  # as its trainers call it
        masks = (x > 0).float().expand(-1, 2, -1, -1)[None]
        episode = network(x[None], x.flip(-1)[None], masks, masks)
        return episode.query_loss + episode.alignment_loss + episode.prototype_loss
    return sum((o * torch.randn_like(o)).mean() for o in network(x))

for name in EVERY:
    torch.manual_seed(rank)  # other weights and other data on every rank
    network = build(name, "2d", deep_supervision=True)
    report = rank_report(network, lambda n: loss_of(name, n), lambda n: n(images_for(n.module)))
    if rank == 0:
        print(json.dumps([name, report]))
dist.barrier()
dist.destroy_process_group()
"""


ALONE = {f"encoder.stages.5.{number}.mixed.axial.shift" for number in range(2)}
"""Parameters of MT-UNet without effect here: its lowest maps are one window, so no distance between windows counts."""


def test_ranks_step_every_network_alike(run_ranks):
    """The saved state, that of rank 0, is also the one with which all ranks predict.

    On CUDA nnU-Net makes batch norms synchronised ones; here, as everywhere else, each rank's running statistics are
    its own until DDP hands out those of rank 0 before the next call of the network.
    """
    printed, _ = run_ranks(START + EVERY_NETWORK)
    reports = dict(json.loads(line) for line in printed.splitlines())
    assert sorted(reports) == sorted(EVERY)
    for name, report in reports.items():
        assert [k for k in report["idle"] if not k.endswith("conv.bias") and k not in ALONE] == []
        own = report["after the step"]
        assert all(k.endswith(("running_mean", "running_var")) for k in own)
        assert bool(own) == (name in ("em_net", "mt_unet"))
        assert report["after the next forward"] == []


TRAINING = """
import sys
from unittest import mock

import torch
import torch.distributed as dist
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as nnunet_trainer
from torch.nn.parallel import DistributedDataParallel

rank, store, trainer_name, configuration = int(sys.argv[1]), *sys.argv[2:5]

def meet(rank, world_size):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)

made, get_trainer = [], run_training.get_trainer_from_args

def get_trainer_on_cpu(*arguments):
    trainer = get_trainer(*arguments)
    trainer.device, trainer.grad_scaler = torch.device("cpu"), None
    made.append(trainer)
    return trainer

with (
    mock.patch.object(run_training, "setup_ddp", meet),
    mock.patch.object(run_training, "get_trainer_from_args", get_trainer_on_cpu),
    mock.patch.object(nnunet_trainer, "DDP", lambda network, device_ids: DistributedDataParallel(network)),
    mock.patch.object(torch.nn.SyncBatchNorm, "convert_sync_batchnorm", lambda network: network),
    mock.patch.object(torch.cuda, "set_device"),
):
    run_training.run_ddp(rank, "4", configuration, 0, trainer_name, "nnUNetPlans", *[False] * 3, None, *[False] * 2, 2)
torch.save(made[0].network.module.state_dict(), f"{store}.{rank}")
"""


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("trainer", "configuration"),
    [
        ("FAFNetFewShotTrainer", "2d_tiny"),
        ("SASANTrainer", "2d_tiny"),
        ("FAFNetTrainer", "3d_fullres_tiny"),
        ("EMNetTrainer", "3d_fullres_tiny"),
    ],
)
def test_nnunets_ddp_training_ends_with_one_network(nnunet, run_ranks, tmp_path, trainer, configuration):
    """nnU-Net's own function for a rank, with its CUDA-only parts replaced: NCCL and synchronised batch norms."""
    budget = {f"NNUNET_EXT_{name}": "2" for name in ("EPOCHS", "ITERATIONS", "VAL_ITERATIONS")}
    run_ranks(TRAINING, trainer, configuration, environment=nnunet.environment | budget | {"nnUNet_n_proc_DA": "0"})
    folder = nnunet.model(trainer, configuration)
    assert json.loads((folder / "validation" / "summary.json").read_text())["foreground_mean"]
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=False)
    states = [checkpoint["network_weights"], *(torch.load(tmp_path / f"store.{rank}") for rank in range(2))]
    for state in states[1:]:
        assert [k for k, value in states[0].items() if not torch.equal(value, state[k])] == []
    if trainer.startswith("FAFNet"):
        assert states[0]["decoder.seg_layers.prototype_valid"].any()
    if trainer == "FAFNetFewShotTrainer":
        training = json.loads((nnunet.preprocessed / "splits_final.json").read_text())[0]["train"]
        made = {file.name for file in nnunet.preprocessed.rglob("supervoxels/*")}
        assert made == {f"{case}.supervoxels" for case in training}
