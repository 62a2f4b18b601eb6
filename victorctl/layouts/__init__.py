"""LLaVA's original layouts, translated into the layout of transformers while they are read."""
