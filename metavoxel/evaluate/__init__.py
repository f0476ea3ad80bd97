"""How good a model is, measured on people it has not met."""
