"""Model servers: where they may be, and how they are asked."""
