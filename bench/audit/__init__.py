"""Audits: what can be said against a number, as data."""
