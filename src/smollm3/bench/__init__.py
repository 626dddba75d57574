"""How fast a model runs here, and models of random weights to measure with."""
