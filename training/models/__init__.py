"""The models: MAR with its heads, the KL autoencoder, and the reference sampling loop."""
