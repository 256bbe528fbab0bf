"""The Triton kernels on a GPU: right, how fast, and how much of what the GPU can do. Needs neither ray nor mlflow."""
