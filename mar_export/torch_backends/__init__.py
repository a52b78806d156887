"""The exported modules in PyTorch in place of engines, on a CPU and on a GPU."""
