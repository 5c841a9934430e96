"""Loaders that decode images while training goes on, in a process of their own."""
