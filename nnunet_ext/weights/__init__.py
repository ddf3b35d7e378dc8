"""Import of the authors' published weights."""

from nnunet_ext.weights.authors import from_authors
from nnunet_ext.weights.files import read_state_dict, write_pretrained

__all__ = ["from_authors", "read_state_dict", "write_pretrained"]
