"""What is learned from measurements: published kernels and servers, and this machine's own."""
