"""What clients and steps have agreed on: models, options, reports, codes of errors, deadlines.

Standard library only: the client, every python step and the server's checks import it.
"""
