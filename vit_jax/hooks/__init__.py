"""Hooks: `hook(step, state) -> state`, the only things that change the state between steps."""
