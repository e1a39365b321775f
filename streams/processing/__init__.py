"""The contract of a stream processor, and what a batch of records comes to."""
