"""Classifies files into records, without HTTP."""
