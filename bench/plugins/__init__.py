"""Registries of plugins, and how a spec becomes an instance."""
