"""`poet serve`: an HTTP service over a checkpoint, whose jobs outlive clients, workers and the service itself."""
