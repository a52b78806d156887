"""The libraries of `benchmarks.peers`, each in a module that imports it."""
