"""Heads: features to one task each."""
