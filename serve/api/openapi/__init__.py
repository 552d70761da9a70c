"""The OpenAPI document of the server, and its page."""
