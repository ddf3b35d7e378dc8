"""Building blocks shared by the networks; they know nothing of nnU-Net."""
