"""Analytics: what is on the log, as tables in ClickHouse (embedded or a server), and reports from
them.
"""
