"""Owns the IPTVPortal adapter: the client, its conditions, and its tables as a source."""

from producer.sources.iptvportal.client import AsyncIPTVPortalClient
from producer.sources.iptvportal.query import Q
from producer.sources.iptvportal.source import IptvPortalConfig, IptvPortalSource

__all__ = ["AsyncIPTVPortalClient", "IptvPortalConfig", "IptvPortalSource", "Q"]
