"""Past one machine: engines in the actors of a Ray cluster, for runs and for the server.

Needs the extra `ray`. Nothing else in conviction imports Ray.
"""
