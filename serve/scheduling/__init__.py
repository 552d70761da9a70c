"""Who runs when, and in how much memory."""
