"""Evaluators: state to {name: value}."""
