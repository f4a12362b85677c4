"""Encoders: arrays to features, without a head."""
