"""Storage: the log, on SQLite or on Kafka, and the artifact store."""
