"""What studies share that train a grid of models: files, resuming, intervals over seeds, reports."""
