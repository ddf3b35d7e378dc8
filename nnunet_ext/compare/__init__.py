"""`nnunet_ext compare`: which trainer is better on a dataset, by how much, how sure that is, and what it costs."""
