"""The folder that nnU-Net scans for trainers: `export nnUNet_extTrainer="$(nnunet_ext trainers)"`."""
