"""What the gateway holds between requests, made once and shared by all of them."""
