"""Pages of HTML that are one file and ask for nothing from outside."""
