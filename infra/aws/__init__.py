"""The deployment on AWS: SAM templates, and the arithmetic that keeps it off the database's limit."""
