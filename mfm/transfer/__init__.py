"""Does pre-training pay? Strategies, label counts and seeds at equal compute, and a report on what they need."""
