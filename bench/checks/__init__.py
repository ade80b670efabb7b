"""What every run checks: facts an image while it is computed, findings when it is recorded."""
