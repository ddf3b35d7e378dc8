"""Public data sets, as they are downloaded, in nnU-Net's raw format."""
