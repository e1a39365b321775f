"""What every process is made of: its logger, threads, HTTP server and errors."""
