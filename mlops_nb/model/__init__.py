"""Features, candidates, evaluation and the package that is registered."""
