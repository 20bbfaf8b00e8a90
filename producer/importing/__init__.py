"""Converters of other programs' configurations into ours: pure, from settings to a document and what to know of it."""
