"""What people change by hand: API keys and routes, each change with an audit event."""
