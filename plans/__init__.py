"""An experiment planner for nnU-Net and the paper's own setting, for each of our networks."""

from nnunet_ext.planning.planner import TracedPlanner
from nnunet_ext.plans.em_net import EMNetPlanner
from nnunet_ext.plans.faf_net import FAFNetPlanner
from nnunet_ext.plans.lstm_sa import LSTMSAPlanner, SALSTMPlanner
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
    StockPlanner,
)

__all__ = ["PLANNERS", "planner_for", *(planner.__name__ for planner in PLANNERS)]


def planner_for(trainer: type) -> type[TracedPlanner]:
    """The planner for a trainer's network; for nnU-Net's own and other trainers, `StockPlanner`."""
    network = getattr(trainer, "network_class", None)
    return next((planner for planner in PLANNERS if planner.network is network), StockPlanner)
