"""The Prefect server of this project: the stack of one machine, its database, its watch."""
