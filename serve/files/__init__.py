"""Files to records, without HTTP."""
