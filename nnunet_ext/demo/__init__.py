"""`nnunet_ext demo`: runs nnU-Net's own commands on real scans, from raw data to a comparison."""
