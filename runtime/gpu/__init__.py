"""An NVIDIA GPU without PyTorch: driver, memory, CUDA graphs, and the masked autoregressive loop on the GPU."""
