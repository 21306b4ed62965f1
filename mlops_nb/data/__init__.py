"""Reading tables, what they hold, whether they can be trusted, and how they are split."""
