"""Nearest clips in a file of embeddings: index, faster engines where installed, and a gallery page."""
