"""The description of a model: its config, the inputs and outputs of its engines, tokens and latents."""
