"""Defenses that change the image or the computation at test time."""
