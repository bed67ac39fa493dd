"""Training: recipes of stages, the loop, weight averages, exact resume."""
