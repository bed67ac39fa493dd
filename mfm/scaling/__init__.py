"""How errors fall with parameters, data and compute: a grid of models, power laws with a floor, and a report."""
