"""Figures of results: what they show as data (`chart`), drawn for a page (`svg`) or as files (`plot`)."""
