"""Apache Kafka on this machine: its own jars from Maven Central, brokers as child processes."""
