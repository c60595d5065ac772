"""One file per data source, with its settings and the function that loads it."""
