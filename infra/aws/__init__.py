"""The deployment on AWS: SAM templates, a connection budget, and what runs while deploying."""
