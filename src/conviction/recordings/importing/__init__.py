"""What other programs recorded."""
