"""Studies: one run or several that are planned together, their tables, and what is made of them."""
