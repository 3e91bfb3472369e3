"""Queries to Prefect's server, and artifacts in its UI."""
