"""Bounds from below: images that no attack in the ball can break."""
