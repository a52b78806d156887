"""The commands `mar export`, `mar build`, `mar bench` and `mar study`."""
