"""Pictures: pure functions from arrays to uint8 [H, W, 3]."""
