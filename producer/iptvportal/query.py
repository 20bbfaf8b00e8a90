"""Conditions and requests of the IPTVPortal API under the names of iptvportal-client."""

from producer.sources.iptvportal.query import Q, QueryBuilder

__all__ = ["Q", "QueryBuilder"]
