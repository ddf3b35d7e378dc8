"""What a network costs, and plans shaped to it."""
