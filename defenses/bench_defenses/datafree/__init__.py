"""Defenses that need nothing but the classifier: they train on images that it makes itself."""
