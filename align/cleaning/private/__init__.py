"""Private data in texts: found, and placeholders put in their place."""
