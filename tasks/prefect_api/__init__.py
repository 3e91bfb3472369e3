"""What is asked of Prefect's server and shown in its UI."""
