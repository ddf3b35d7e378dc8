"""`nnunet_ext compare`: which trainer is better on a dataset, by how much, how certain that is, and at what cost."""
