"""What a person looks at: terminal tables, the board, charts, report.html."""
