"""Formats in which a trained model leaves the recipe; ``formats.py`` lists them."""
