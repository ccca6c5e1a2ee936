"""Protocols `(model, splits, config) -> Report`, and the metrics and rankings they are made of."""
