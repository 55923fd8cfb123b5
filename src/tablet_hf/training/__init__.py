"""What is needed around training: how good predictions are, and what simpler methods reach on the same people."""
