"""Time and memory of the networks, measured on the machine at hand."""
