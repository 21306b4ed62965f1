"""One script for each schema, numbered."""
