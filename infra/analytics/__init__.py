"""Analytics: the log as tables in ClickHouse (embedded or a server), and reports from them."""
