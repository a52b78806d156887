"""The artifact of a model: its folder, its manifest, and engines built for devices."""
