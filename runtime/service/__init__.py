"""An image service: requests of many clients are drawn in batches, and answered over HTTP."""
