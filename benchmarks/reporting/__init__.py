"""What records results, compares them with targets and earlier runs, and writes tables, charts and documents."""
