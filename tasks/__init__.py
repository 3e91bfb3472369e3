"""Policy and side effects around the stages: retries, artifacts, workspaces, storage."""
