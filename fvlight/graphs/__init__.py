"""A network's graph: traced, sorted into kinds of operations, and run on just what a unit sees."""
