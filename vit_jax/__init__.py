"""Representation learning on images in JAX: every method one small file plugged into one loop."""

__version__ = '0.1.0'
