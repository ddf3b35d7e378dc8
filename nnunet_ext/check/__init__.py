"""What a trainer and its network must do to work with nnU-Net, as checks of one subject at a time."""
