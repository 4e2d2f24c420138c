"""The ground: what every room stands on, with no word of models or data."""
