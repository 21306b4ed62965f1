"""What `mlops-nb new` writes: a project's files, and the steps of its pipeline."""
