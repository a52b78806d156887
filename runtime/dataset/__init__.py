"""Many images drawn into files: planned as shards, drawn by any number of workers, written by one process."""
