"""The contract of a trainer and its network with nnU-Net, as checks of one network on one setting."""
