"""How much faster the necessary work is than the released procedure, measured side by side."""
