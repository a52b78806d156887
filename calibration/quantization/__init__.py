"""Post-training quantization of an artifact's engines, with scales from the activations of real images."""
