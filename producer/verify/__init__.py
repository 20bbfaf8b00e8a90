"""The comparison of a stream's topic with its source: what must be there, what is, and the keys that differ.

The two sides share as little as possible with a run. The topic is read by a plain consumer; the source by a scan of its
own (`producer.protocols.ScanningSource`), without the run's paging conditions and session settings. Both use the run's
schemas and Avro encoder, by which rows are turned into the bytes that are compared.
"""

from producer.verify.run import verify
from producer.verify.source_side import Counts

__all__ = ["Counts", "verify"]
