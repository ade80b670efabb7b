"""Diffusion purification."""
