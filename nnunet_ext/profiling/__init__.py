"""Memory and operation counts of a training, obtained by tracing it without allocating memory."""
