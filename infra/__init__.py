"""What surrounds the streams: gateway, model serving, analytics, configuration, processes and the
command line.
"""
