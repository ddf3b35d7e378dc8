"""Experiment planners, one per network, and the papers' settings as plan presets."""
