"""Point-BERT."""
