"""What the export bought, side by side with where it came from."""
