"""Studies: questions about attacks and defenses, answered by tables, figures and one sentence."""
