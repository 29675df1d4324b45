"""The toy world: captioned photographs of rendered toys, each a function of a seed, with the truth as data."""
