"""An NVIDIA GPU without PyTorch: its driver, memory and graphs, and the loop that lives there."""
