"""Training: jobs in processes of their own, and what they made served, checked and announced."""
