"""Diffusion models: networks that denoise, where their weights come from, and how they are
trained.
"""
