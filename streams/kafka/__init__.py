"""The log and its runner on Apache Kafka."""
