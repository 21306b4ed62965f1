"""Notebooks for the tests of this room."""

import json


def notebook(*cells: str | tuple[str, str]) -> str:
    """A notebook's file: code cells as text, prose as ('markdown', text)."""
    written = []
    for number, cell in enumerate(cells):
        kind, source = cell if isinstance(cell, tuple) else ("code", cell)
        tags = {"tags": ["parameters"]} if source.startswith("#| parameters") else {}
        entry = {"cell_type": kind, "id": f"cell-{number}", "metadata": tags, "source": source}
        written.append(entry | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": written, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
