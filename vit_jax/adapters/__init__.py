"""Adapters: published checkpoints to our parameters, and back."""
