"""Stream tables, Telegram histories and HTTP tables into Kafka as Avro, losing nothing."""

__version__ = "0.1.0"
