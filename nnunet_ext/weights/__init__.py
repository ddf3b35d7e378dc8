"""Import of published weights, and weights for another plan."""

from nnunet_ext.weights.adapting import adapt_weights
from nnunet_ext.weights.authors import from_authors
from nnunet_ext.weights.files import read_state_dict, write_pretrained
from nnunet_ext.weights.for_trainer import for_trainer

__all__ = ["adapt_weights", "for_trainer", "from_authors", "read_state_dict", "write_pretrained"]
