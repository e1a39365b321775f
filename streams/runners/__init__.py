"""What carries processors over a log: live on SQLite or Kafka, or in replay."""
