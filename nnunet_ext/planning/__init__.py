"""Plans shaped to a network by its traced memory."""
