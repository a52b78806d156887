"""The commands `mar calibrate` and `mar optimize-steps`."""
