"""`nnunet_ext demo`: nnU-Net's real commands on real scans, from raw data to a comparison."""
