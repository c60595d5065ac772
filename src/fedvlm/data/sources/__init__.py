"""One file per data source: its settings, and how it is loaded."""
