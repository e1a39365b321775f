"""The runner on Kafka, with Faust."""
