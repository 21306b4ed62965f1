"""The BentoML service that answers with the published release."""
