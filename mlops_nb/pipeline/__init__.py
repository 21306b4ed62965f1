"""From a folder of notebooks to a graph, a plan and a run."""
