"""Files: whole writes, claims on shared work, artifacts, checkpoints, downloads, the data root."""
