"""The folder that nnU-Net searches for trainers: `export nnUNet_extTrainer="$(nnunet_ext trainers)"`."""
