"""Everything the package knows about the files that nnU-Net reads and writes."""
