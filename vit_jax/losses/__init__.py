"""Losses: arrays to one loss an example."""
