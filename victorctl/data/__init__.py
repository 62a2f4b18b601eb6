"""What goes into a model: scenes, conversations and batches."""
