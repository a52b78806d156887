"""Damaged inputs: every format that is read is changed at random, and must end in the same result or in one line."""
