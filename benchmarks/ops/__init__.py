"""Our kernels beside those of others, and how near they come to what the machine can do."""
