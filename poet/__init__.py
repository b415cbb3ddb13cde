"""poet: train, evaluate and serve a VideoPoet-class model in JAX.  Importing it loads nothing heavy."""

__version__ = "0.1.0"
