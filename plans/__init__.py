"""An experiment planner for nnU-Net and the paper's own setting, for each of our networks."""

import pydoc

from nnunet_ext.nnunet.trainers import network_of
from nnunet_ext.planning.planner import TracedPlanner
from nnunet_ext.plans.em_net import EMNetPlanner
from nnunet_ext.plans.faf_net import FAFNetPlanner
from nnunet_ext.plans.lstm_sa import LSTMSAPlanner, SALSTMPlanner
from nnunet_ext.plans.own import OwnNetworkPlanner
from nnunet_ext.plans.sasan import SASANPlanner
from nnunet_ext.plans.stock import StockPlanner
from nnunet_ext.plans.u_mamba import UMambaPlanner

PLANNERS: tuple[type[TracedPlanner], ...] = (
    SASANPlanner,
    EMNetPlanner,
    SALSTMPlanner,
    LSTMSAPlanner,
    FAFNetPlanner,
    UMambaPlanner,
    OwnNetworkPlanner,
    StockPlanner,
)

__all__ = ["PLANNERS", "planner_for", *(planner.__name__ for planner in PLANNERS)]


def planner_for(trainer: type) -> type[TracedPlanner]:
    """The planner for a trainer: its own `planner`, that of its network, or one that learns what its network needs.

    Raises:
        ValueError: if the trainer names a planner or a network that cannot be imported.
    """
    own = getattr(trainer, "planner", None)
    if own is not None:
        return _located(trainer, own)
    network = network_of(trainer)
    if network is None:
        return StockPlanner
    return next((planner for planner in PLANNERS if planner.network is network), OwnNetworkPlanner)


def _located(trainer: type, planner: type | str) -> type[TracedPlanner]:
    found = pydoc.locate(planner) if isinstance(planner, str) else planner
    if not (isinstance(found, type) and issubclass(found, TracedPlanner)):
        raise ValueError(f"`planner`={planner!r} of {trainer.__name__} is no subclass of {TracedPlanner.__name__}")
    return found
