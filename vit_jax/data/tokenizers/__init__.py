"""Tokenizers: a text to `context` token ids, and back."""
