"""Owns the pages that the HTTP side serves, and its OpenAPI document: files, each complete in itself."""
