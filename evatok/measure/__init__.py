"""What trained models achieve: tables, protocols, curves."""
