"""Files: whole writes, claims on shared work, artifacts, checkpoints, downloads."""
