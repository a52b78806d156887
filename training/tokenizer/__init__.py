"""Training of the KL autoencoder that turns images into latents."""
