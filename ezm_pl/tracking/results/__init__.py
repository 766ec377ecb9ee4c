"""What a run comes to: learning curves, figures, tables, videos."""
