"""The database side: how connections are made, kept, checked and used."""
