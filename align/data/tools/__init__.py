"""What `align data` does with files: looked at, shown, rewritten, divided, mixed."""
