"""Training and evaluation of one candidate."""
