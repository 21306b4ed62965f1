"""What each command of `mlops-nb` does."""
