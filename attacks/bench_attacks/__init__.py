"""Attacks: one file each; they know a Victim and no defense."""
