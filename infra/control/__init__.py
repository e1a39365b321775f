"""What people change by hand: API keys and routes, each with a line in the audit trail."""
