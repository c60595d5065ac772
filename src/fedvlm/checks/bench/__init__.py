"""Speed of this package and of the released procedure, measured side by side."""
