"""What the database must hold before the first invocation: roles, schema, sample orders."""
