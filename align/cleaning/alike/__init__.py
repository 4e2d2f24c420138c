"""Rows that repeat each other, exactly or nearly."""
