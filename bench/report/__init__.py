"""What is made from records: tables, and descriptions for a reader."""
