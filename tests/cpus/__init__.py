"""`make cpus`: shows that the int8 models compute the same integers on every CPU that can be had here."""
