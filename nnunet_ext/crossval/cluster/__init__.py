"""Cross-validation as jobs of a cluster."""
