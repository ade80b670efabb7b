"""Pictures of records: what was attacked, how it was changed, and what became of it."""
