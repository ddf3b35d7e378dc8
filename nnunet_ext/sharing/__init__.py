"""`nnunet_ext pack` and `nnunet_ext install`: a trained model as one file that proves itself where it is installed."""
