"""What came out: outcomes, records, metrics, intervals, verdicts, findings."""
