"""Model servers, and how they are asked."""
