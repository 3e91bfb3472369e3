"""What an evaluation found, for people: report, tables, summary, advice."""
