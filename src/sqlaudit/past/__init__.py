"""What did it look like then? Reads as of an instant."""
