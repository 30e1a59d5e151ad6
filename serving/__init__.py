"""Serving: finds or embeds tritonserver, runs it under supervision, reports its environment.

`server.start_server` runs a server from Python, `tritonserver.main` is the console script,
`doctor.examine` describes the environment. `backends/` holds the python-based backends of the
embedded server.
"""
