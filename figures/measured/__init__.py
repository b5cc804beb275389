"""Theory beside measurement: measured rows are read, joined with the toy's predictions by spec hash, and drawn."""
