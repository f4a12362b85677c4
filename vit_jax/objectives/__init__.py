"""Objectives: a batch to a loss and metrics, one file a method."""
