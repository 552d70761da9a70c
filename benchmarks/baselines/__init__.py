"""What the server replaced."""
