"""Files: written completely or not at all, held by one process, read within limits, and compared with their hashes."""
