"""Defenses: one file a method, grouped by family; they know no attack."""
