"""What a method has to beat."""
