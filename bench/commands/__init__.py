"""What stands behind the commands other than `run`, one module a command."""
