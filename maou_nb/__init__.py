"Teaches a neural network shogi in three stages, from a notebook"
__version__ = "0.1.0"
