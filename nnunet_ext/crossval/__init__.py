"""`nnunet_ext crossval`: from a dataset to the comparison report, on one machine or on a cluster."""
