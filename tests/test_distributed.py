"""Two real processes: the ranks of a DDP training agree on the SM loss's weights and on the network."""

RANK = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from nnunet_ext.losses import SelfUpdatingLoss
from nnunet_ext.networks import SASAN

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
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


def test_ranks_agree(run_ranks):
    outputs = [printed.splitlines() for printed in run_ranks(RANK)]
    (poor, weights0), (good, weights1) = (line[0].split(" ", 1) for line in outputs)
    assert (poor, good) == ("True", "False")
    assert weights0 == weights1
    assert weights0 != "[1.0, 1.0, 1.0]"
    assert outputs[0][1] == outputs[1][1]
