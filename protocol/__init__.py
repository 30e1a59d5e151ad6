"""What clients and steps have agreed on: models, codes of errors, the deadline of a request.

Standard library only: the client, every python step and the server's checks import it.
"""
