"""The contract of a stream processor, and the processing of a batch of records."""
