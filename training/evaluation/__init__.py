"""Quality of generated images: feature networks, metrics, and the generation of many images."""
