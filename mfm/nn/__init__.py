"""Building blocks: radial functions, harmonics, products, aggregation, perceptrons."""
