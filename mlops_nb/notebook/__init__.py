"""Reading step notebooks, running one, and the flow object inside it."""
