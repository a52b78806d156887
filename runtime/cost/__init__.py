"""The cost of a plan: operations, bytes, and predicted time."""
