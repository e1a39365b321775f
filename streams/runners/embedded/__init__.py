"""The runner on the embedded log: outputs, states and offsets in one transaction."""
