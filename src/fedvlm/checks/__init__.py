"""Checks: agreement with reference outputs, the state of an installation, speed beside the released procedure."""
