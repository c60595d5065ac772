"""Runs and what is read from them: run folder and ledger, tables, figures, verification against references."""
