"""Data that a defense may ask for beyond the classifier's weights."""
