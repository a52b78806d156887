"""Generated images as files: how each was made, its name, its bytes, and the index of a folder of images."""
