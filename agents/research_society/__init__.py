"""The research society: nine roles that turn a question into a protocol and a decision."""
