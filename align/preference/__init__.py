"""Learning from preferences: what its stages share."""
