"""What records, judges and draws."""
