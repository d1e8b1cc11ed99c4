"""What students so far say of those to come."""
