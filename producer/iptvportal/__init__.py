"""The client of the IPTVPortal API under the names of iptvportal-client, for programs that come from there."""

from producer.sources.iptvportal import AsyncIPTVPortalClient, Q

__all__ = ["AsyncIPTVPortalClient", "Q"]
