"""The arguments of a request: checks of labels, seeds, orders and noise, and edits."""
