"""Remotes: a store's artifacts elsewhere. The other side is taken for hostile."""
